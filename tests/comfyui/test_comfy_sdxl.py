"""SDXL: the sum, and the method in every mask source that needs no text encoder."""

import numpy as np
import pytest
from comfyui.graphs import SUM, XlGraph

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def off(host):
    latents = host.run(XlGraph().two().sample("off")).kept("off")
    assert np.isfinite(latents).all()
    return latents


def test_sum_is_the_hosts_bit_by_bit(host, off):
    assert np.array_equal(off, host.run(XlGraph().two().fuse(**SUM).sample()).kept())


@pytest.mark.parametrize("source", ["mask", "silhouette", "whole picture"])
def test_the_method_is_used(host, off, source):
    graph = XlGraph().two().fuse(mask_source=source, injection_start=0.3)
    done = host.run(graph.sample().show())
    assert np.isfinite(done.kept()).all()
    assert np.abs(done.kept() - off).max() > 1e-3
    assert "KV-Injection in layers 0 to 4, steps 1 to 3" in done.summary

"""Off, the plain sum and the method, in every way that graphs use ControlNets."""

import numpy as np
import pytest
from comfyui.cases import CASES
from comfyui.graphs import METHOD, SUM, Graph

pytestmark = pytest.mark.timeout(1200)
QUICK = ("two", "batch", "apart", "combined")


def cases():
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in CASES]


@pytest.mark.parametrize("name", cases())
def test_sum_is_the_hosts_bit_by_bit(host, plain, figures, name):
    done = host.run(CASES[name].graph_of(lambda graph: graph.fuse(**SUM)))
    assert np.array_equal(plain(name), done.kept())
    figures["sum is the host's, bit by bit"] = figures.get("sum is the host's, bit by bit", 0) + 1


@pytest.mark.parametrize("name", cases())
def test_the_method_is_used(host, plain, name):
    case = CASES[name]
    done = host.run(case.graph_of(lambda graph: graph.fuse(**METHOD)).show())
    latents = done.kept()
    assert np.isfinite(latents).all()
    assert np.abs(latents - plain(name)).max() > 1e-3
    assert "pix+channel, delta 0.5" in done.summary
    assert ("KV-Injection in" in done.summary) is case.injects, done.summary
    assert case.says in done.summary
    state = host.state()
    assert (state["ours"], state["sessions"], state["hooks"]) == ([], 0, 0)


@pytest.mark.usefixtures("settled")
def test_it_is_repeatable(host):
    first, second = (
        host.run(CASES["two"].graph_of(lambda graph: graph.fuse(**METHOD), keep, seed=11))
        for keep in ("one", "other")
    )
    host.call("/free", {"unload_models": True, "free_memory": True})
    third = host.run(CASES["two"].graph_of(lambda graph: graph.fuse(**METHOD), "third", seed=11))
    assert np.array_equal(first.kept("one"), second.kept("other"))
    assert np.array_equal(first.kept("one"), third.kept("third"))


@pytest.mark.parametrize(
    "given",
    [
        {"mask_source": "word"},
        {"mask_source": "mask"},
        {"mask_source": "silhouette"},
        {"mask_source": "whole picture"},
    ],
    ids=lambda given: given["mask_source"],
)
def test_masks(host, plain, given):
    done = host.run(Graph().two().fuse(injection_start=0.3, **given).sample().show())
    mask = done.kept("report-mask")
    assert mask.shape == (1, 128, 128)
    share = {"mask": 0.5, "whole picture": 1.0}.get(given["mask_source"])
    if share is None:
        assert 0.02 < mask.mean() < 0.98
    else:
        assert mask.mean() == pytest.approx(share)
    winners = done.kept("report-winners")
    assert winners.shape == (1, 128, 128, 3)
    assert len(np.unique(winners.reshape(-1, 3), axis=0)) > 1
    assert np.abs(done.kept() - plain("two")).max() > 1e-3


def test_outside_its_span_the_units_are_summed(host, plain):
    for span in ({"start_percent": 1.0}, {"end_percent": 0.0}):
        done = host.run(Graph().two().fuse(**{"start_percent": 0.0, **span}).sample().show())
        assert np.array_equal(plain("two"), done.kept())
    done = host.run(Graph().two().fuse(start_percent=0.4).sample().show())
    assert np.abs(done.kept() - plain("two")).max() > 1e-3

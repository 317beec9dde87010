"""Beside other packs: --beside DIR installs one. ComfyUI-Advanced-ControlNet."""

import json

import numpy as np
import pytest
from comfyui.cases import Case, in_windows
from comfyui.graphs import METHOD, SUM

pytestmark = pytest.mark.timeout(1200)
APPLY, LOADER = "ACN_AdvancedControlNetApply_v2", "ACN_ControlNetLoaderAdvanced"


@pytest.fixture(scope="module")
def advanced(host):
    """Skip where the pack is not there."""
    if APPLY not in json.dumps(list(host.call("/object_info"))):
        pytest.skip("ComfyUI-Advanced-ControlNet is not installed; name its folder with --beside")


def unit(graph, name, image, **more):
    net = graph.out(LOADER, cnet=f"ccn-random-{name}.safetensors")
    made = graph.add(
        APPLY,
        positive=graph.positive,
        negative=graph.negative,
        control_net=net,
        image=graph.image(image),
        **{"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **more},
    )
    graph.positive, graph.negative = [made, 0], [made, 1]


def schedule(graph):
    """A strength that falls over the steps."""
    return graph.out(
        "ACN_TimestepKeyframeInterpolation",
        start_percent=0.0,
        end_percent=1.0,
        strength_start=1.0,
        strength_end=0.3,
        interpolation="linear",
        intervals=5,
    )


def _scheduled(graph, fuse):
    unit(graph, "a", 0, timestep_kf=schedule(graph))
    unit(graph, "b", 1)
    fuse(graph)


def _masked(graph, fuse):
    unit(graph, "a", 0, mask_optional=graph.mask())
    unit(graph, "b", 1, strength=0.8)
    fuse(graph)


def _soft(graph, fuse):
    weights = graph.out(
        "ACN_ScaledSoftControlNetWeights",
        base_multiplier=0.825,
        uncond_multiplier=0.5,
    )
    unit(graph, "a", 0, weights_override=weights)
    unit(graph, "b", 1)
    fuse(graph)


def _mixed(graph, fuse):
    unit(graph, "a", 0)
    graph.unit("b", 1)
    fuse(graph)


def _in_windows(graph, fuse):
    in_windows(graph)
    unit(graph, "a", 0, timestep_kf=schedule(graph))
    unit(graph, "b", 1)
    fuse(graph)


ADVANCED = {
    "schedule": Case(_scheduled),
    "mask": Case(_masked),
    "soft weights": Case(_soft),
    "with the host's own": Case(_mixed),
    "context windows": Case(_in_windows, graph={"batch": 3}),
}


@pytest.mark.usefixtures("advanced", "settled")
@pytest.mark.parametrize("name", ADVANCED)
def test_advanced_controlnets(host, name):
    case = ADVANCED[name]
    off = host.run(case.graph_of(lambda graph: None, "off")).kept("off")
    assert np.isfinite(off).all()
    done = host.run(case.graph_of(lambda graph: graph.fuse(**SUM)))
    assert np.array_equal(off, done.kept())
    done = host.run(case.graph_of(lambda graph: graph.fuse(**METHOD)).show())
    assert np.abs(done.kept() - off).max() > 1e-3
    assert "KV-Injection in" in done.summary

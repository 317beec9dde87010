"""One UNet call's residuals and attentions, computed again by the paper's formulas in float64."""

import pytest
import torch
from attention.oracle import equation_9
from comfyui.graphs import Graph
from hosts.checks import FusedAgain, scale
from hosts.test_host_residuals import DELTAS
from safetensors.torch import load_file

from lib_ccn.foreground import resize_mask

pytestmark = pytest.mark.timeout(1200)
# Float32 attention of the host, whose chunks it adds up in its own order.
ATTENTION_ROUNDING = 1e-5


@pytest.fixture
def dumped(host, tmp_path):
    """Sample, and return one call: residuals by unit, and what the UNet added."""

    def dump(graph):
        host.call("/ccn-probe/dump", {"folder": str(tmp_path), "skip": 1})
        host.run(graph.sample(seed=3))
        tensors = load_file(tmp_path / "residuals.safetensors")
        layers = 1 + max(int(name.split(".")[-1]) for name in tensors)
        count = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("unit"))
        by_unit = [[tensors[f"unit.{u}.{i}"] for i in range(layers)] for u in range(count)]
        return by_unit, [tensors[f"got.{i}"] for i in range(layers)]

    return dump


@pytest.mark.parametrize("count", [2, 3])
def test_fused_again(dumped, figures, count):
    again = FusedAgain()
    for delta in DELTAS:
        graph = Graph(size=(128, 192)).two()
        if count == 3:
            graph.unit("c", 2)
        units, got = dumped(graph.fuse(delta=delta, mask_source="whole picture"))
        assert (len(units), len(got)) == (count, 13)
        again.call(units, got, delta)
    assert again.kinds["one"] > 0
    assert again.kinds["several"] > 0
    figures[f"recomputed fusion of {count} units"] = str(again)


@pytest.mark.parametrize("source", ["mask", "whole picture"])
def test_injected_again(host, tmp_path, figures, source):
    host.call("/ccn-probe/attentions", {"folder": str(tmp_path), "skip": 2})
    host.run(Graph().two().fuse(mask_source=source, injection_start=0).sample(seed=5))
    tensors = load_file(tmp_path / "attentions.safetensors")
    layers = 1 + max(int(name.split(".")[1]) for name in tensors)
    assert layers == 7
    picture = torch.ones(1, 128, 128, dtype=torch.bool)
    if source == "mask":
        picture[..., 64:] = False
    worst = 0.0
    for layer in range(layers):

        def of(net, name, layer=layer):
            return tensors[f"{net}.{layer}.{name}"]

        projected = {
            net: [of(net, "x") @ of(net, part).T for part in ("to_q", "to_k", "to_v")]
            for net in (0, 1)
        }
        side = int(of(1, "x").shape[1] ** 0.5)
        mask = resize_mask(picture, (side, side)).expand(len(of(1, "x")), -1)
        out = equation_9(*projected[1], *projected[0][1:], mask, int(of(1, "heads")))
        wanted = out @ of(1, "to_out").T + of(1, "bias")
        plain = equation_9(*projected[1], *projected[0][1:], ~mask, int(of(1, "heads")))
        assert (
            float((of(1, "out") - (plain @ of(1, "to_out").T + of(1, "bias"))).abs().max()) > 1e-3
        )
        worst = max(worst, float((of(1, "out") - wanted).abs().max() / scale(wanted)))
    figures[f"recomputed injection, {source}"] = f"{layers} layers, largest difference {worst:.1e}"
    assert worst < ATTENTION_ROUNDING

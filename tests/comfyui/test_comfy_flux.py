"""FLUX: the sum, the method in every mask source, and both parts of it again in float64."""

import numpy as np
import pytest
import torch
from comfyui.graphs import METHOD, SUM, FluxGraph
from hosts.checks import FusedAgain, scale
from safetensors.torch import load_file

from lib_ccn.hosts.linked_list import as_map

pytestmark = pytest.mark.timeout(1200)
GUIDED = {"cfg": 1.0, "scheduler": "simple"}
SIZE, GRID = (160, 128), (8, 10)
DELTA = 0.02  # random units hardly agree


def graph_of(kind, **more):
    return getattr(FluxGraph(**more), kind)()


@pytest.fixture(scope="module")
def off(host):
    """Latents without our node."""
    known = {}
    for kind in ("two", "both"):
        known[kind] = host.run(graph_of(kind).sample("off", **GUIDED)).kept("off")
        assert np.isfinite(known[kind]).all()
    return known


@pytest.mark.parametrize("kind", ["two", "both"])
class TestEquality:
    def test_sum_is_the_hosts_bit_by_bit(self, host, off, kind):
        done = host.run(graph_of(kind).fuse(**SUM).sample(**GUIDED))
        assert np.array_equal(off[kind], done.kept())

    @pytest.mark.parametrize("source", ["automatic", "mask", "silhouette", "word"])
    def test_the_method_is_used(self, host, off, kind, source):
        given = {**METHOD, "mask_source": source}
        done = host.run(graph_of(kind).fuse(**given).sample(**GUIDED).show())
        assert np.isfinite(done.kept()).all()
        assert np.abs(done.kept() - off[kind]).max() > 1e-3
        last = {"two": 1, "both": 4}[kind]
        assert f"KV-Injection in layers 0 to {last}, steps 1 to 3" in done.summary
        assert {"automatic": "mask from all", "word": "word star (given)"}.get(source, "") in (
            done.summary
        )
        state = host.state()
        assert (state["ours"], state["sessions"], state["hooks"]) == ([], 0, 0)

    def test_with_guidance_and_a_batch(self, host, kind):
        graph = graph_of(kind, batch=2).fuse(**METHOD)
        done = host.run(graph.sample(**{**GUIDED, "cfg": 3.0}).show())
        assert done.kept().shape[0] == 2
        assert "KV-Injection in" in done.summary


def test_an_error_costs_the_fusion_only(host, off):
    broken = {"target": "lib_ccn.joint_attention:inject_joint_keys_values", "message": "oh no"}
    host.call("/ccn-probe/break", broken)
    try:
        done = host.run(graph_of("two").fuse(**METHOD).sample(**GUIDED).show(), fails=True)
    finally:
        host.call("/ccn-probe/mend", {})
    assert done.status == "success"
    assert "oh no" in done.summary
    done = host.run(graph_of("two").sample("again", **GUIDED, seed=7))
    assert np.array_equal(off["two"], done.kept("again"))


@pytest.fixture
def computed(host, tmp_path):
    """Sample, and return what was computed in one call."""

    def dump(kind, **given):
        host.call("/ccn-probe/joint", {"folder": str(tmp_path), "skip": 1})
        graph = graph_of(kind, size=SIZE).fuse(delta=DELTA, injection_start=0, **given)
        host.run(graph.sample(**GUIDED, seed=9))
        return load_file(tmp_path / "joint.safetensors")

    return dump


@pytest.mark.parametrize("kind", ["two", "both"])
def test_fused_again(computed, figures, kind):
    tensors = computed(kind, mask_source="whole picture")
    places = [name[4:] for name in tensors if name.startswith("got.")]
    assert len(places) == {"two": 19, "both": 57}[kind]
    again, distinct = FusedAgain(), {}
    for place in places:
        units = [as_map(tensors[f"unit.{net}.{place}"].float(), GRID) for net in (0, 1)]
        distinct.setdefault(float(units[0].sum()), []).append(place)
        got = as_map(tensors[f"got.{place}"], GRID)
        units = [unit * (0.7 if kind == "both" else 1.0) for unit in units]
        if place in distinct[float(as_map(tensors[f"unit.0.{place}"].float(), GRID).sum())][1:]:
            continue  # the same tensor at another place
        if again.could_be(units, got):
            again.pixels(units, got, DELTA)
        else:  # the last one, by channels
            again.channels(units, got, DELTA)
            last = place
    assert len(distinct) == {"two": 2, "both": 5}[kind]
    assert last.startswith({"two": "input", "both": "output"}[kind])
    assert again.kinds["one"] > 0
    figures[f"FLUX, recomputed fusion ({kind})"] = (
        f"{len(distinct)} tensors at {len(places)} places; {again}"
    )


@pytest.mark.parametrize("source", ["mask", "whole picture"])
def test_injected_again(computed, figures, source):
    tensors = computed("both", mask_source=source)
    mask = torch.ones(GRID, dtype=torch.bool)
    if source == "mask":
        mask[:, GRID[1] // 2 :] = False
    mask = mask.flatten()
    worst, layers = 0.0, 0
    while f"1.{layers}.q" in tensors:
        q, k2, v2 = (tensors[f"1.{layers}.{name}"] for name in "qkv")
        k1, v1 = (tensors[f"0.{layers}.{name}"][:, :, -len(mask) :] for name in "kv")
        wanted = formula(q, k2, v2, k1, v1, mask)
        plain = formula(q, k2, v2, k2[:, :, -len(mask) :], v2[:, :, -len(mask) :], mask)
        got = tensors[f"1.{layers}.out"]
        assert float((got - plain).abs().max()) > 1e-3
        worst = max(worst, float((got - wanted).abs().max() / scale(wanted)))
        layers += 1
    assert layers == 5
    figures[f"FLUX, recomputed injection, {source}"] = (
        f"{layers} layers, largest difference {worst:.1e}"
    )
    assert worst < 1e-5


def formula(q, k2, v2, k1, v1, mask):
    """Appendix A.5: text rows as ever, image rows by side; [B, tokens, C]."""
    text = q.shape[2] - len(mask)

    def attend(rows, keys, values):
        weights = (q[:, :, rows] @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)
        return weights @ values

    out = torch.empty_like(q)
    everyone = torch.arange(q.shape[2])
    fg, bg = everyone[text:][mask], everyone[text:][~mask]
    out[:, :, :text] = attend(everyone[:text], k2, v2)
    kt, vt = k2[:, :, :text], v2[:, :, :text]
    keys, values = (torch.cat(pair, 2) for pair in ((kt, k1[:, :, mask]), (vt, v1[:, :, mask])))
    out[:, :, fg] = attend(fg, keys, values)
    keys, values = (torch.cat(pair, 2) for pair in ((k2, k1[:, :, ~mask]), (v2, v1[:, :, ~mask])))
    out[:, :, bg] = attend(bg, keys, values)
    return out.transpose(1, 2).flatten(2)

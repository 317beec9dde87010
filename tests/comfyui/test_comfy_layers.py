"""Layers: several ControlNets in front, each with its place."""

import numpy as np
import pytest
from comfyui.graphs import FluxGraph, Graph

pytestmark = pytest.mark.timeout(1200)


def three(**more):
    graph = Graph(**more).two()
    graph.unit("c", 2)
    return graph


def fused(graph, layers, **given):
    words = {"word": [graph.word, 1]}
    return graph.fuse(fusion="layers", layers=layers, **{**words, "injection_start": 0.3, **given})


@pytest.mark.parametrize("injection", [False, True])
def test_two_words_in_front(host, injection):
    graph = three(batch=2)
    layers = graph.layer(1, "hill", graph.layer(0, "star"))
    done = host.run(fused(graph, layers, injection=injection).sample().show())
    assert np.isfinite(done.kept()).all()
    assert "layers" in done.summary
    assert "star (given)" in done.summary
    assert "hill (given)" in done.summary
    assert ("KV-Injection in" in done.summary) is injection
    masks = done.kept("report-mask")
    assert masks.shape == (4, 128, 128)  # both layers of both pictures
    assert not (masks[:2] * masks[2:]).any()
    assert masks[:2].any()


def test_their_order_matters_where_both_are(host):
    def latents(first, second, keep):
        graph = three()
        masks = {0: graph.out("SolidMask", value=1.0, width=128, height=128), 1: graph.mask()}
        before = graph.layer(first, mask=masks[first])
        layers = graph.layer(second, in_front=before, mask=masks[second])
        return host.run(fused(graph, layers, injection=False).sample(keep)).kept(keep)

    assert np.abs(latents(0, 1, "one") - latents(1, 0, "other")).max() > 1e-3


def test_a_place_that_is_nowhere_is_the_hosts_sum(host, plain):
    graph = Graph().two()
    nowhere = graph.out("SolidMask", value=0.0, width=128, height=128)
    layers = graph.layer(0, mask=nowhere)
    done = host.run(fused(graph, layers, injection=False).sample().show())
    assert np.array_equal(plain("two"), done.kept())


def test_outside_all_places_the_papers_fusion_can_choose(host):
    def latents(place, keep, **given):
        graph = three()
        mask = graph.out("SolidMask", value=0.0, width=128, height=128)
        layers = graph.layer(0, mask=mask if place == "nowhere" else graph.mask())
        return host.run(fused(graph, layers, injection=False, **given).sample(keep).show())

    over = {"outside_places": "pix+channel"}
    graph = three().fuse(fusion="pix+channel", injection=False)
    paper = host.run(graph.sample("paper").show()).kept("paper")
    nowhere = latents("nowhere", "nowhere", **over)
    assert np.array_equal(nowhere.kept("nowhere"), paper)
    painted = latents("painted", "painted", **over)
    assert "layers over pix+channel" in painted.summary
    for other in (paper, latents("painted", "summed").kept("summed")):
        assert np.abs(painted.kept("painted") - other).max() > 1e-3


def test_widgets_of_saved_workflows_stay_where_they_are(host):
    """A workflow has its widgets' values by their order: new ones come last."""
    given = host.call("/object_info/CrossControlNetApply")["CrossControlNetApply"]["input_order"]
    names = [*given["required"], *given.get("optional", [])]
    assert names[-3:] == ["foreground_gain", "record", "outside_places"]


def test_flux(host):
    graph = FluxGraph().both()
    layers = graph.layer(1, "hill", graph.layer(0, "star"))
    graph = fused(graph, layers, injection=False)
    done = host.run(graph.sample(cfg=1.0, scheduler="simple").show())
    assert np.isfinite(done.kept()).all()
    assert "star (given)" in done.summary
    assert "hill (given)" in done.summary

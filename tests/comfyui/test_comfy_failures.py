"""Errors and interrupts: the picture is made, nothing leaks, the next graph is as the first."""

import numpy as np
import pytest
from comfyui.cases import CASES
from comfyui.graphs import METHOD, Graph

pytestmark = [pytest.mark.timeout(3000)]

# Where an error is thrown, and whether the host's own picture is certain then.
PLACES = [
    ("lib_ccn.session:fuse_residuals", 0, True),
    ("lib_ccn.session:fuse_residuals", 1, False),
    ("lib_ccn.session:Session.__init__", 0, True),
    ("lib_ccn.session:Session.begin_call", 0, True),
    ("lib_ccn.session:Session.run", 0, True),
    ("lib_ccn.session:Session.fuse", 0, True),
    ("lib_ccn.session:Session.fuse", 2, False),
    ("lib_ccn.places:Places.begin_step", 0, True),
    ("lib_ccn.places:Places.regions_for", 0, False),
    ("lib_ccn.unet_attention:inject_keys_values", 0, False),
    ("lib_ccn.unet_attention:capture_keys_values", 0, False),
    ("lib_ccn.masking:WordMaps.begin_call", 0, True),
    ("lib_ccn.masking:WordMaps.next_maps", 1, False),
    ("lib_ccn.hosts.linked_list:total", 0, True),
    ("lib_ccn.comfy.run:Run._describe", 0, True),
    ("lib_ccn.comfy.run:Run._read_chunk", 1, False),
]


def method(**more):
    return CASES["two"].graph_of(lambda graph: graph.fuse(**METHOD), **more).show()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(("target", "after", "plain_picture"), PLACES)
def test_error_costs_the_fusion_only(host, plain, target, after, plain_picture):
    host.call("/ccn-probe/break", {"target": target, "after": after, "message": "oh no"})
    done = host.run(method(), fails=True)
    assert done.status == "success", done.error
    assert "oh no" in done.summary
    if plain_picture:
        assert np.array_equal(plain("two"), done.kept())
    else:
        assert np.isfinite(done.kept()).all()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "target",
    [
        "lib_ccn.comfy.plan:Record.of",
        "lib_ccn.session:Session.close",
        "lib_ccn.session:Session.account",
        "lib_ccn.comfy.words:tokens_of",
        "lib_ccn.comfy.drawn:decision_image",
    ],
)
def test_error_at_the_end_costs_no_picture(host, target):
    host.call("/ccn-probe/break", {"target": target, "message": "oh no"})
    done = host.run(method(seed=12), fails=True)
    assert done.status == "success", done.error
    assert np.isfinite(done.kept()).all()


@pytest.mark.usefixtures("settled")
def test_error_of_the_hosts_own_stays_its_own(host):
    """What a ControlNet throws passes through us, and we leave nothing behind."""
    broken = {"target": "comfy.cldm.cldm:ControlNet.forward", "after": 3, "message": "of the host"}
    host.call("/ccn-probe/break", broken)
    done = host.run(method(), fails=True)
    assert done.status == "error"
    assert "of the host" in done.error
    state = host.state()
    assert (state["ours"], state["sessions"], state["hooks"]) == ([], 0, 0)


@pytest.mark.usefixtures("settled")
def test_interrupt_in_the_middle(host):
    """Nobody calls `cleanup` then; what was cached is used again afterwards."""
    graph = method(steps=40, seed=23)
    with host.events() as events:
        prompt = host.queue(graph)
        steps = (one for one in events if one["type"] == "progress")
        while next(steps)["data"]["value"] < 5:
            pass
        host.call("/interrupt", {})
        done = host.wait(prompt)
    assert done.interrupted
    state = host.state()
    assert (state["ours"], state["sessions"], state["hooks"]) == ([], 0, 0)
    again = host.run(method(seed=24))
    fresh = host.run(CASES["two"].graph_of(lambda graph: graph.fuse(**METHOD), "fresh", seed=24))
    assert np.array_equal(again.kept(), fresh.kept("fresh"))


@pytest.mark.usefixtures("settled")
def test_two_branches_with_other_settings(host):
    """Each does what it would do alone; what one of them was told does not reach the other."""
    alone = [
        host.run(Graph().two().fuse(**given).sample(f"alone-{n}")).kept(f"alone-{n}")
        for n, given in enumerate(({"fusion": "mean", "injection": False}, METHOD))
    ]
    graph = Graph().two()
    positive, negative = graph.positive, graph.negative
    graph.fuse(fusion="mean", injection=False).sample("first")
    graph.positive, graph.negative = positive, negative
    graph.fuse(**METHOD).sample("second")
    done = host.run(graph)
    assert np.array_equal(alone[0], done.kept("first"))
    assert np.array_equal(alone[1], done.kept("second"))


@pytest.mark.usefixtures("settled")
def test_two_samplers_in_a_row(host):
    """As a hires pass: the same conditionings, then at another size; the second is reported."""
    graph = Graph().two().fuse(**METHOD).sample("first")
    graph.latent = graph.out(
        "LatentUpscale",
        samples=graph.latents,
        upscale_method="bilinear",
        width=192,
        height=192,
        crop="disabled",
    )
    done = host.run(graph.sample("second", denoise=0.7).show())
    assert done.kept("second").shape[-2:] == (24, 24)
    assert "KV-Injection in" in done.summary
    assert done.kept("report-mask").shape == (1, 192, 192)


@pytest.mark.usefixtures("settled")
def test_what_is_cached_is_used_again(host):
    graph = method(seed=31)
    first = host.run(graph)
    latents, summary = first.kept().copy(), first.summary
    second = host.run(graph)
    cached = next(one["nodes"] for kind, one in second.messages if kind == "execution_cached")
    assert len(cached) > 8
    assert np.array_equal(latents, second.kept())
    assert second.summary == summary


@pytest.mark.full
@pytest.mark.usefixtures("settled")
def test_many_in_a_row(host, figures):
    """Neither memory nor hooks nor sessions grow."""
    start = None
    for number in range(50):
        host.run(Graph(size=(64, 64)).two().fuse(**METHOD).sample(steps=2, seed=number).show())
        if number == 9:
            start = host.state()
    end = host.state()
    growth = end["memory"] - start["memory"]
    figures["memory growth over 40 runs, MB"] = round(growth, 1)
    assert (end["hooks"], end["sessions"]) == (0, 0)
    assert growth < 60

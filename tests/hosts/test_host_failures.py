"""Errors thrown inside: the picture is made, nothing leaks, the next request is as the first."""

import pytest
from hosts.cases import EVERYWHERE, METHOD, hires, using
from hosts.client import HttpError, distance, same

pytestmark = [pytest.mark.timeout(3000)]

# Where an error is thrown, and whether the host's own picture is certain then.
PLACES = [
    ("lib_ccn.session:fuse_residuals", 0, True),
    ("lib_ccn.session:fuse_residuals", 1, False),
    ("lib_ccn.session:Session.__init__", 0, True),
    ("lib_ccn.session:Session.begin_call", 0, True),
    ("lib_ccn.places:Places.begin_step", 0, True),
    ("lib_ccn.session:Session.run", 0, True),
    ("lib_ccn.session:Session.fuse", 0, True),
    ("lib_ccn.session:Session.fuse", 1, False),
    ("lib_ccn.unet_attention:inject_keys_values", 0, False),
    ("lib_ccn.masking:WordMaps.begin_call", 0, True),
    ("lib_ccn.masking:WordMaps.next_maps", 1, False),
    ("lib_ccn.session:Session.account", 0, False),
]


@pytest.fixture
def mended(host):
    yield
    host.client.call("/ccn-probe/mend", {})


@pytest.mark.usefixtures("settled", "mended")
@pytest.mark.parametrize(("target", "after", "plain"), PLACES)
def test_error_costs_the_fusion_only(host, first, target, after, plain):
    host.client.call("/ccn-probe/break", {"target": target, "after": after, "message": "oh no"})
    reply = host.generate(using(host.requests.body(), METHOD), errors=True)
    assert len(reply.pictures) == 1
    if plain:
        assert same(first, reply)
    if not target.endswith("account"):
        assert "oh no" in reply.note


@pytest.mark.usefixtures("settled", "mended")
def test_strict_turns_an_error_into_a_refusal(host):
    target = {"target": "lib_ccn.session:fuse_residuals", "message": "oh no"}
    host.client.call("/ccn-probe/break", target)
    with pytest.raises(HttpError) as caught:
        host.generate(using(host.requests.body(), {**METHOD, "strict": True}), errors=True)
    assert caught.value.status == 422
    assert "oh no" in caught.value.text


@pytest.mark.usefixtures("settled", "mended")
def test_error_of_the_hosts_own_stays_its_own(host):
    """What the sampler throws passes through us, and we leave nothing behind."""
    inside = {"target": "torch.nn.functional:group_norm", "after": 100, "message": "oh no"}
    host.client.call("/ccn-probe/break", inside)
    with pytest.raises(HttpError) as caught:
        host.generate(using(host.requests.body(), METHOD), errors=True)
    host.client.call("/ccn-probe/mend", {})
    assert caught.value.status == 500


@pytest.mark.usefixtures("settled")
def test_inner_generations_are_skipped(host, first):
    """What ADetailer does: a generation inside `postprocess_image`, `process` called again."""
    body = using(host.requests.body(), EVERYWHERE)
    inner = {**body["alwayson_scripts"], "CCN probe inner": {"args": [True]}}
    alone = host.generate(body)
    host.state()
    reply = host.generate({**body, "alwayson_scripts": inner})
    counts = host.state()["counts"]
    assert reply.parameters["CCN probe inner"] == "done"
    assert distance(alone, reply) > 0
    assert counts["fuse_residuals"] == body["steps"]
    assert reply.enabled
    assert reply.note == ""


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("controlnet", ["None", "Passthrough"])
def test_adetailer(host, controlnet):
    """The real one, where it is beside: its inner pictures are left to the host."""
    if "adetailer" not in [
        name.lower() for name in host.client.call("/sdapi/v1/scripts")["txt2img"]
    ]:
        pytest.skip("ADetailer is not installed; name its folder with --beside")
    models = host.client.call("/adetailer/v1/ad_model")["ad_model"]
    detectors = [name for name in models if name.endswith(".pt")]
    if not detectors:
        folder = host.installation.work / "models" / "adetailer"
        pytest.skip(f"ADetailer has no detection model; put one into {folder}")
    body = using(host.requests.body(), EVERYWHERE)
    detail = {
        "ad_model": detectors[0],
        "ad_confidence": 0.0,  # noise has no faces
        "ad_mask_k": 1,
        "ad_denoising_strength": 0.8,
        "ad_controlnet_model": controlnet,
    }
    scripts = {**body["alwayson_scripts"], "ADetailer": {"args": [True, False, detail]}}
    alone = host.generate(body)
    host.state()
    reply = host.generate({**body, "alwayson_scripts": scripts})
    assert host.state()["counts"]["fuse_residuals"] == body["steps"]
    assert reply.enabled
    assert reply.note == ""
    assert distance(alone, reply) > 0


@pytest.mark.usefixtures("settled")
def test_interrupt_leaves_nothing(host):
    import threading

    body = using(hires(host.requests, steps=40), METHOD)
    done = []
    worker = threading.Thread(target=lambda: done.append(host.generate(body)))
    worker.start()
    worker.join(6)
    host.client.call("/sdapi/v1/interrupt", {})
    worker.join(120)
    assert done, "the request did not end"
    assert len(done[0].pictures) == 1


@pytest.mark.full
@pytest.mark.usefixtures("settled")
def test_many_in_a_row(host, figures):
    """Neither memory nor hooks nor sessions grow."""
    body = using(host.requests.body(steps=2), METHOD)
    host.generate(body)
    start = None
    for number in range(50):
        host.generate(body)
        if number == 9:
            start = host.state()
    end = host.state()
    growth = end["memory"] - start["memory"]
    figures["memory growth over 40 generations, MB"] = round(growth, 1)
    assert end["hooks"] == start["hooks"]
    assert end["sessions"] <= 1
    assert growth < 60

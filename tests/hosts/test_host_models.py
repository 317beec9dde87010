"""Models that few have: Union and InstantID ControlNets, SD 2, and two checkpoints in a picture."""

import base64
import io

import pytest
import torch
from hosts.cases import EVERYWHERE, SUM, hires, using
from hosts.checks import compared
from hosts.client import HttpError, distance, same

pytestmark = [pytest.mark.timeout(3000), pytest.mark.full, pytest.mark.usefixtures("settled")]

# How a unit says which kind of condition it has for a Union ControlNet.
UNION_KIND = {"a1111": "union_control_type", "neo": "type_filter"}
SD2 = pytest.mark.families(
    *("forge", "reforge", "classic", "a1111"), why="this host loads no Stable Diffusion 2"
)


@pytest.mark.models("ccn-random-union")
class TestUnion:
    """One model for many kinds of condition; where the host knows no kinds, a plain ControlNet."""

    @pytest.fixture
    def unit(self, host):
        def make(kind, seed, **changes):
            said = {UNION_KIND[host.family]: kind} if host.family in UNION_KIND else {}
            return host.requests.unit("union", seed, **said, **changes)

        return make

    def test_two_kinds_of_one_model(self, host, unit, figures):
        body = host.requests.body([unit("Depth", 1), unit("OpenPose", 2)])
        found = compared(host, body)
        alike = host.generate(host.requests.body([unit("Depth", 1), unit("Depth", 2)]))
        if host.family in UNION_KIND:
            assert distance(found.plain, alike) > 0, "the host makes no difference between kinds"
        assert found.counts["fuse_residuals"] == body["steps"]
        assert found.counts["inject_keys_values"] == body["steps"] - 1
        assert found.note == ""
        figures["Union, grey levels"] = round(distance(found.plain, found.fused), 1)

    def test_beside_a_plain_one(self, host, unit):
        body = host.requests.body([unit("Depth", 1), host.requests.unit("b", 2)])
        found = compared(host, body)
        swapped = host.generate(using(body, {**EVERYWHERE, "foreground_unit": 1}))
        assert found.counts["fuse_residuals"] == body["steps"]
        assert found.note == ""
        assert distance(found.fused, swapped) > 0, "either can be the foreground"


@pytest.mark.models("ccn-random-instant_id-face", "ccn-random-instant_id-control")
class TestInstantID:
    """A face's adapter and the ControlNet that looks at the face's tokens instead of the prompt.

    What recognises faces, InsightFace, has models of its own; its 512 numbers are random here, sent
    to sd-webui-controlnet with the request, given to Forge and its kin by the probe.
    """

    @pytest.fixture
    def units(self, host):
        if host.family == "a1111":
            file = io.BytesIO()
            torch.save(torch.randn(512, generator=torch.Generator().manual_seed(1)), file)
            numbers = base64.b64encode(file.getvalue()).decode()
            face = {"module": "instant_id_face_embedding", "ipadapter_input": numbers}
        else:
            host.client.call("/ccn-probe/faces", {})
            face = {"module": "InsightFace (InstantID)"}
        return [
            host.requests.unit("instant_id-face", 3, **face),
            host.requests.unit("instant_id-control", 1),
        ]

    def test_beside_a_plain_controlnet(self, host, units, figures):
        body = host.requests.body([*units, host.requests.unit("b", 2)])
        found = compared(host, body)
        assert found.counts["fuse_residuals"] == body["steps"]
        assert found.counts["inject_keys_values"] == body["steps"] - 1
        assert found.note == ""
        figures["InstantID, grey levels"] = round(distance(found.plain, found.fused), 1)
        other = {**EVERYWHERE, "foreground_unit": 2, "background_unit": 1}
        assert distance(found.fused, host.generate(using(body, other))) > 0

    def test_alone(self, host, units):
        """The adapter is no ControlNet: there is one unit that could be fused."""
        reply = host.generate(using(host.requests.body(units), EVERYWHERE))
        assert "fewer than two" in reply.note
        assert same(host.generate(host.requests.body(units)), reply)


@pytest.mark.models("ccn-random-sd15-other")
class TestTwoCheckpoints:
    """The picture is begun with one checkpoint and ended with another."""

    def refined(self, host, **changes):
        more = {"refiner_checkpoint": "ccn-random-sd15-other", "refiner_switch_at": 0.5}
        if host.family == "neo":  # it counts in sigmas otherwise
            more["override_settings"] = {"refiner_use_steps": True}
        return host.requests.body(**{"steps": 4, **more, **changes})

    def test_refiner(self, host, figures):
        body = self.refined(host)
        found = compared(host, body)
        alone = host.generate(host.requests.body(steps=4))
        assert distance(found.plain, alone) > 0, "the host has not switched to the refiner"
        assert "Refiner" in found.fused.parameters
        # Forge and its kin load no ControlNet for the refiner; A1111 changes the UNet's weights.
        steps = 4 if host.family == "a1111" else 2
        assert found.counts["fuse_residuals"] == steps
        assert found.counts["inject_keys_values"] == steps - 1
        assert found.note == ""
        figures["refiner, fused steps of 4"] = steps

    def test_refiner_with_a_word(self, host):
        """What is known of the prompt goes on, though the host encodes it anew."""
        words = {"fusion": "pix+channel", "foreground_word": "star", "start_step": 0}
        reply = host.generate(using(self.refined(host), {**words, "mask_threshold": 0.3}))
        assert reply.note == ""

    def test_after_the_refiner(self, host):
        """The next request begins with the first checkpoint again, and is fused as ever."""
        before = host.generate(using(host.requests.body(), EVERYWHERE))
        host.generate(using(self.refined(host), EVERYWHERE))
        assert same(before, host.generate(using(host.requests.body(), EVERYWHERE)))

    def test_hires_checkpoint(self, host):
        body = hires(host.requests, hr_checkpoint_name="ccn-random-sd15-other")
        found = compared(host, body)
        assert distance(found.plain, host.generate(hires(host.requests))) > 0
        counts, first = found.counts["fuse_residuals"], body["steps"]
        second = body["hr_second_pass_steps"]
        if counts == first:
            assert "hires pass: " in found.note
        else:
            assert counts == first + second
            assert found.note == ""

    @pytest.mark.models("ccn-random-sd21")
    @SD2
    def test_hires_checkpoint_that_no_controlnet_fits(self, host):
        """Another family of models: what the host cannot load for it is not said to be fused."""
        body = hires(host.requests, hr_checkpoint_name="ccn-random-sd21")
        try:
            plain = host.generate(body)
        except HttpError:
            pytest.skip("the host itself runs the first checkpoint's ControlNets, and fails")
        assert same(plain, host.generate(using(body, SUM)))
        host.state()
        reply = host.generate(using(body, EVERYWHERE))
        assert host.state()["counts"]["fuse_residuals"] == body["steps"]
        assert "hires pass: " in reply.note
        assert "nothing was fused" in reply.note or "fewer than two" in reply.note


@SD2
@pytest.mark.models("ccn-random-sd21", "ccn-random-sd21-a", "ccn-random-sd21-b")
class TestSD2:
    """Another width of the text's tokens, and linear projections around the attentions."""

    @pytest.fixture
    def loaded(self, host, settled):
        """The checkpoint of this family, and the host's first one before `settled` looks."""
        host.client.call("/sdapi/v1/options", {"sd_model_checkpoint": "ccn-random-sd21"})
        yield
        host.client.call("/sdapi/v1/options", {"sd_model_checkpoint": host.installation.checkpoint})

    @pytest.mark.usefixtures("loaded")
    def test_fused_and_injected(self, host, figures):
        units = [host.requests.unit("sd21-a", 1), host.requests.unit("sd21-b", 2)]
        body = host.requests.body(units)
        found = compared(host, body)
        assert found.counts["fuse_residuals"] == body["steps"]
        assert found.counts["inject_keys_values"] == body["steps"] - 1
        assert found.note == ""
        figures["SD 2.1, grey levels"] = round(distance(found.plain, found.fused), 1)

    @pytest.mark.usefixtures("loaded")
    def test_word(self, host):
        units = [host.requests.unit("sd21-a", 1), host.requests.unit("sd21-b", 2)]
        words = {"fusion": "pix+channel", "foreground_word": "star", "start_step": 0}
        host.state()
        body = host.requests.body(units, steps=3)
        reply = host.generate(using(body, {**words, "mask_threshold": 0.3}))
        assert reply.note == ""
        assert host.state()["counts"]["inject_keys_values"] > 0

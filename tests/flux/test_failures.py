"""What fails leaves nothing behind, and what is refused says why."""

from __future__ import annotations

import logging

import diffusers
import pytest
import torch
from family_oracles import state
from tiny import conditions

from benchmarks.random_models import random_flux
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import SettingsError

from .generation import MARKS, WORD, generate

pytestmark = MARKS


class PlantedError(Exception):
    """Thrown by the test at one stage of a generation."""


def plant(stage, pipe):
    """Make one stage of the coming generation fail; returns the hook, or arguments of the call."""

    def broken(*_args, **_kwargs):
        raise PlantedError

    if stage == "callback":
        return None, {"callback_on_step_end": broken}
    if stage == "bad input":
        return None, {"max_sequence_length": 10_000}
    first, second = pipe.controlnet.nets
    module = {
        "text encoder": pipe.text_encoder_2,
        "vae": pipe.vae.encoder,
        "first controlnet": first,
        "inside attention": second.transformer_blocks[1].attn.to_out[0],
        "second controlnet": second.controlnet_single_blocks[0],
        "transformer": pipe.transformer,
        "transformer's attention": pipe.transformer.transformer_blocks[1].attn.norm_k,
    }[stage]
    return module.register_forward_pre_hook(broken), {}


STAGES = [
    "text encoder",
    "vae",
    "first controlnet",
    "inside attention",
    "second controlnet",
    "transformer",
    "transformer's attention",
    "callback",
    "bad input",
]


def test_generations_that_fail_leave_nothing(pipe):
    plain = generate(pipe)
    before = state(pipe)
    settings = {**WORD, "start_step": 0, "strict": False}
    for stage in STAGES:
        with cross_controlnet(pipe, settings) as control:
            generate(pipe, num_inference_steps=1)
            hook, arguments = plant(stage, pipe)
            with pytest.raises((PlantedError, ValueError)):
                generate(pipe, num_inference_steps=2, **arguments)
            if hook is not None:
                hook.remove()
            generate(pipe, num_inference_steps=2)
            assert control.session.injected > 0, f"after {stage}, the block goes on"
        assert state(pipe) == before, stage
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize(
    "broken",
    [
        "lib_ccn.session.fuse_residuals",
        "lib_ccn.joint_attention.attend_by_region",
        "lib_ccn.joint_attention.JointAttentionRecorder._add",
        "lib_ccn.attention.Regions.groups",
        "lib_ccn.hosts.diffusers.flux.clip_piece",
    ],
)
def test_an_error_in_the_method_costs_the_fusion_not_the_picture(pipe, broken, monkeypatch, caplog):
    def fails(*_args, **_kwargs):
        raise ArithmeticError("made for this test")

    plain = generate(pipe)
    settings = {**WORD, "strict": False}
    if "fuse" not in broken:
        settings["fusion"] = "sum"  # until it breaks, all is as the host makes it
    with caplog.at_level(logging.WARNING), cross_controlnet(pipe, settings):
        monkeypatch.setattr(broken, fails)
        ours = generate(pipe)
        monkeypatch.undo()
        assert torch.equal(ours, plain)
        assert any("made for this test" in r.getMessage() for r in caplog.records)
        assert not torch.equal(generate(pipe), plain), "the next generation has the method again"


def test_refusals_name_what_is_wrong(pipe):
    with (
        pytest.raises(SettingsError, match=r"mask_reduction = 2.*4, its default: FLUX"),
        cross_controlnet(pipe, {"mask_reduction": 2}),
    ):
        pass
    with (
        pytest.raises(SettingsError, match=r"foreground_unit.*0 to 1"),
        cross_controlnet(pipe, {"foreground_unit": 2}),
    ):
        pass
    with pytest.raises(SettingsError, match=r"settings = 7"), cross_controlnet(pipe, 7):
        pass
    union = random_flux(1, num_mode=4)
    two = {
        "control_mode": [0, 1],
        "control_image": conditions(2),
        "control_guidance_start": [0.0, 0.0],
    }
    with (
        pytest.raises(SettingsError, match=r"background_unit = 4.*\[0, 1\]"),
        cross_controlnet(union, {"background_unit": 4}),
    ):
        generate(union, **two)
    single = diffusers.FluxControlNetPipeline(
        **{**pipe.components, "controlnet": pipe.controlnet.nets[0]}
    )
    with pytest.raises(TypeError, match="FluxControlNetModel; expected"), cross_controlnet(single):
        pass
    other = random_flux(2)
    other.controlnet.nets[1] = diffusers.FluxControlNetModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    said = r"ControlNet 1: FluxControlNetModel.*joint_attention_dim is 32, the transformer's is 24"
    with pytest.raises(ValueError, match=said), cross_controlnet(other):
        pass
    before = state(pipe)
    again = pytest.raises(RuntimeError, match="another cross_controlnet block")
    with cross_controlnet(pipe), again, cross_controlnet(pipe):
        pass
    assert state(pipe) == before

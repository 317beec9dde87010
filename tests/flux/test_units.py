"""Sibling pipelines, Union ControlNets, and units of unlike depth."""

from __future__ import annotations

import diffusers
import pytest
import torch
from family_oracles import NOTHING, dumped, joint_attention_oracle, state
from tiny import conditions

from benchmarks.random_models import random_flux
from lib_ccn.foreground import resize_mask
from lib_ccn.hosts.diffusers import cross_controlnet, family_of
from lib_ccn.joint_attention import joint_attention_layers

from .generation import FULL, MARKS, WORD, generate

pytestmark = MARKS


@pytest.mark.parametrize("name", ["FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline"])
@pytest.mark.parametrize("nets", [2, 3])
def test_the_sibling_pipelines(name, nets):
    pipe = random_flux(nets, getattr(diffusers, name))
    assert family_of(pipe) == "flux"
    before = state(pipe)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    arguments = {"image": picture, "strength": 0.8, "num_inference_steps": 5}
    arguments["control_mode"] = [0] * nets  # these two give up without it
    if "Inpaint" in name:
        arguments["mask_image"] = torch.ones(1, 1, 32, 32)
    plain = generate(pipe, **arguments)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(generate(pipe, **arguments), plain)
    with cross_controlnet(pipe, WORD) as control:
        assert not torch.equal(generate(pipe, **arguments), plain)
        assert control.session.injected > 0
    assert torch.equal(generate(pipe, **arguments), plain)
    assert state(pipe) == before


@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("nets", ["one", "each its own"])
def test_union_controlnets(images, nets):
    """A single union ControlNet is as many units as it is given images."""
    pipe = random_flux(1 if nets == "one" else images, num_mode=4)
    arguments = {
        "control_image": conditions(images),
        "control_mode": [2, 0, 3][:images],
        "control_guidance_start": [0.0] * images,  # or the pipeline itself takes one image only
        "control_guidance_end": [1.0] * images,
    }
    plain = generate(pipe, **arguments)
    with cross_controlnet(pipe, {**NOTHING, "foreground_unit": images - 1}):
        assert torch.equal(generate(pipe, **arguments), plain)
    with cross_controlnet(pipe, {**WORD, "foreground_unit": images - 1}) as control:
        ours = generate(pipe, **arguments)
        assert control.session.injected == (images - 1) * 2 * 4
        assert len(control.session.units) == images
    assert not torch.equal(ours, plain)
    with cross_controlnet(pipe, WORD):
        other = generate(pipe, **{**arguments, "control_mode": [1, 0, 3][:images]})
    assert not torch.equal(other, ours), "the mode has an effect"


def test_a_mode_token_of_one_unit_alone_does_not_shift_the_image():
    """Background with a mode token, foreground without: the captured image tokens still fit."""
    pipe = random_flux(2)
    pipe.controlnet.nets[1] = random_flux(1, num_mode=4, seed=5).controlnet.nets[0]
    first, second = (joint_attention_layers(net)[0] for net in pipe.controlnet.nets)
    modules = {"one": first.module, "two": second.module}
    with dumped(modules) as seen, cross_controlnet(pipe, WORD) as control:
        generate(pipe, control_mode=[None, 2])
    mask = resize_mask(control.session.place.mask, (8, 8))[0]
    (given, (image, text)), (given1, _) = seen["two"], seen["one"]
    assert given["encoder_hidden_states"].shape[1] == 17
    want, want_text = joint_attention_oracle(second.module, first.module, given, given1, mask)
    torch.testing.assert_close(image.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(text.double(), want_text, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("blocks", "shared"),
    [
        (((2, 2), (3, 0)), 2),
        (((3, 0), (2, 2)), 2),
        (((3, 2), (2, 1)), 3),
        (((0, 2), (2, 2)), 2),
        (((0, 2), (2, 0)), 0),
    ],
    ids=str,
)
def test_units_of_unlike_depth_are_what_the_host_makes_of_them(blocks, shared):
    pipe = random_flux(2)
    for number, shape in enumerate(blocks):
        pipe.controlnet.nets[number] = random_flux(1, blocks=shape, seed=9).controlnet.nets[0]
    plain = generate(pipe)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(generate(pipe), plain)
    with cross_controlnet(pipe, FULL) as control:
        assert torch.isfinite(generate(pipe)).all()
    assert control.error is None
    assert control.session.injected == 2 * shared, "two steps; a block without a partner is let be"
    assert ("no attention layer in common" in control.summary()) == (shared == 0)


def test_blocks_of_unlike_controlnets_are_paired_by_stream_and_place():
    """Union-Pro 1.0 beside 2.0 in small: double and single blocks beside double blocks alone."""
    pipe = random_flux(2)
    for number, shape in enumerate(((2, 4), (4, 0))):
        pipe.controlnet.nets[number] = random_flux(1, blocks=shape, seed=9).controlnet.nets[0]
    first, second = (
        {layer.name: layer.module for layer in joint_attention_layers(net)}
        for net in pipe.controlnet.nets
    )
    with dumped(first) as one, dumped(second) as two, cross_controlnet(pipe, FULL) as control:
        generate(pipe)
    assert control.session.injected == 2 * 2
    mask = torch.ones(64, dtype=torch.bool)
    for number, (name, module) in enumerate(second.items()):
        given, out = two[name]
        other = (first[name], one[name][0]) if number < 2 else (module, given)
        want = joint_attention_oracle(module, other[0], given, other[1], mask, number < 2)
        for got, wanted in zip(out, want, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_unit_that_is_off_is_not_run(three):
    off = {"controlnet_conditioning_scale": [1.0, 0.0, 1.0]}
    plain = generate(three, **off)
    with cross_controlnet(three, NOTHING):
        assert torch.equal(generate(three, **off), plain)
    ran = []
    handle = three.controlnet.nets[1].register_forward_hook(lambda *_: ran.append(1))
    with cross_controlnet(three, FULL):
        assert not torch.equal(generate(three, **off), plain)
    handle.remove()
    assert not ran

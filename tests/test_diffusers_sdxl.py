"""Cross-ControlNet on real SDXL pipelines with random weights."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch
from family_oracles import (
    NOTHING,
    PROMPT,
    assert_fused_by_formula,
    assert_sum_is_the_pipelines,
    dumped,
    self_attention_oracle,
    state,
)
from tiny import conditions

from benchmarks.random_models import random_sdxl
from demo.demo_model import BUNDLED
from lib_ccn.foreground import resize_mask, token_grid
from lib_ccn.hosts.diffusers import cross_controlnet, family_of
from lib_ccn.settings import SettingsError
from lib_ccn.unet_attention import self_attention_layers

pytestmark = pytest.mark.skipif(
    not BUNDLED.is_dir(), reason="the tokenizer comes from models/demo, which is missing"
)
FULL = {"start_step": 1, "foreground_word": "star", "strict": True}


@pytest.fixture(scope="module")
def pipe():
    return random_sdxl()


@pytest.fixture(scope="module")
def three():
    return random_sdxl(nets=3)


def generate(pipe, prompt=PROMPT, seed=0, **changes):
    """One generation's final latents; equal seeds give equal noise."""
    arguments = {
        "image": conditions(len(pipe.controlnet.nets)),
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        **changes,
    }
    return pipe(prompt, **arguments).images


CALLS = {
    "cfg": {},
    "no cfg": {"guidance_scale": 1.0},
    "guess mode": {"guess_mode": True},
    "scales": {"controlnet_conditioning_scale": [0.3, 1.7]},
    "ranges": {"control_guidance_end": [0.7, 1.0]},
    "two prompts": {"prompt": [PROMPT, "blue water"], "image": conditions(batch=2)},
    "two pictures": {"num_images_per_prompt": 2},
    "a second prompt": {"prompt_2": "a blue ring"},
    "wide, no multiple of 64": {"image": conditions(size=(24, 44))},
    "micro-conditioning": {"original_size": (16, 8), "crops_coords_top_left": (4, 2)},
}


@pytest.mark.parametrize("changes", CALLS.values(), ids=CALLS)
def test_the_sum_without_injection_is_the_pipeline_bit_by_bit(pipe, changes):
    assert_sum_is_the_pipelines(pipe, FULL, partial(generate, pipe, **changes))


def test_three_units(three):
    plain = generate(three)
    with cross_controlnet(three, {**NOTHING, "foreground_unit": 2}):
        assert torch.equal(generate(three), plain)
    with cross_controlnet(three, {**FULL, "foreground_unit": 2}) as control:
        assert not torch.equal(generate(three), plain)
        assert control.session.injected == 2 * 2 * 8, "two background units, two steps, 8 blocks"


def residuals_dumped(pipe, settings):
    """The last step's residuals: each unit's, and what the UNet got."""
    units, received = {}, []
    undo = [
        net.register_forward_hook(lambda m, a, out, i=i: units.update({i: [*out[0], out[1]]}))
        for i, net in enumerate(pipe.controlnet.nets)
    ]

    def take(_module, _args, kwargs):
        down = kwargs["down_block_additional_residuals"]
        received[:] = [*down, kwargs["mid_block_additional_residual"]]

    undo.append(pipe.unet.register_forward_pre_hook(take, with_kwargs=True))
    try:
        with cross_controlnet(pipe, settings):
            generate(pipe, num_inference_steps=2, image=conditions(len(units) or 2, (16, 24)))
    finally:
        for handle in undo:
            handle.remove()
    return [units[i] for i in sorted(units)], received


def test_the_unet_gets_what_the_formula_gives(pipe):
    units, received = residuals_dumped(pipe, {**FULL, "delta": 0.3})
    assert len(received) == 10, "SDXL has nine skips and the middle"
    assert_fused_by_formula(units, received, 0.3)


def test_injected_attention_is_equation_9(pipe):
    """Every inner block of every layer, from dumped inputs, against float64."""
    first, second = (
        {layer.name: layer for layer in self_attention_layers(net)} for net in pipe.controlnet.nets
    )
    settings = {**FULL, "mask_threshold": 0.4, "start_layer": 1}
    with (
        dumped({name: layer.module for name, layer in first.items()}) as one,
        dumped({name: layer.module for name, layer in second.items()}) as two,
        cross_controlnet(pipe, settings) as control,
    ):
        generate(pipe)
    mask = control.session.place.mask
    assert 0 < mask.float().mean() < 1
    assert [layer.layer for layer in second.values()] == [0, 1, 2, 2, 3, 3, 4, 4]
    for name, layer in second.items():
        given, out = two[name]
        x2, x1 = given["hidden_states"], one[name][0]["hidden_states"]
        here = resize_mask(mask, token_grid((16, 16), x2.shape[1]))[0]
        parts = (layer.module, first[name].module, x2, x1, here)
        want = self_attention_oracle(*parts, injected=layer.layer >= 1)
        torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)
        if layer.layer >= 1 and here.any():
            assert not torch.allclose(
                out.double(), self_attention_oracle(*parts, injected=False), atol=1e-3
            )


@pytest.mark.parametrize("deep", [0, 1], ids=["deep foreground", "deep background"])
def test_controlnets_of_unlike_depth_are_paired_by_layer(deep):
    """Two inner blocks in the last layers beside one: what has no partner is let be."""
    pipe = random_sdxl()
    shallow = random_sdxl(transformer_layers_per_block=(1, 1, 1), seed=9).controlnet.nets[0]
    pipe.controlnet.nets[1 - deep] = shallow
    first, second = (
        {layer.name: layer.module for layer in self_attention_layers(net)}
        for net in pipe.controlnet.nets
    )
    settings = {**FULL, "mask_source": "all"}
    with dumped(first) as one, dumped(second) as two, cross_controlnet(pipe, settings) as control:
        generate(pipe)
    assert control.session.injected == 2 * 5, "two steps, the first inner block of five layers"
    for name, module in second.items():
        given, out = two[name]
        x2, partner = given["hidden_states"], first.get(name, module)
        x1 = one[name][0]["hidden_states"] if name in first else x2
        here = torch.ones(x2.shape[1], dtype=torch.bool)
        want = self_attention_oracle(module, partner, x2, x1, here, injected=name in first)
        torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)


def test_the_word_is_found_in_the_prompt_of_the_encoder_that_has_it(pipe):
    def position(prompt, prompt_2, word="ring"):
        settings = {**FULL, "foreground_word": word, "strict": False}
        with cross_controlnet(pipe, settings) as control:
            generate(pipe, prompt, prompt_2=prompt_2)
        (word,) = control.session.place.word._decided.values()
        return word and word.positions

    assert position("a blue ring", None) == (3,)
    assert position(PROMPT, "a ring") == (2,)
    assert position("a ring", "over the blue ring") == (2,)
    assert position(PROMPT, "blue water") is None


def test_prompt_embeddings_and_the_refiners_only_tokenizer(pipe):
    embedded = pipe.encode_prompt(PROMPT)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
    arguments = dict(zip((*names, "negative_pooled_prompt_embeds"), embedded, strict=True))
    with cross_controlnet(pipe, FULL, prompt=PROMPT) as control:
        ours = generate(pipe, None, **arguments)
        assert control.session.injected > 0
        pipe.tokenizer, kept = None, pipe.tokenizer
        try:
            assert torch.equal(generate(pipe, None, **arguments), ours)
        finally:
            pipe.tokenizer = kept


def test_the_mask_has_a_quarter_of_the_latents_sides_at_any_size(pipe):
    for size, grid in (((32, 48), (4, 6)), ((40, 24), (5, 3))):
        with cross_controlnet(pipe, FULL) as control:
            generate(pipe, image=conditions(size=size))
        assert control.session.place.mask.shape == (1, *grid)


SIBLINGS = [
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetUnionPipeline",
    "StableDiffusionXLControlNetUnionImg2ImgPipeline",
    "StableDiffusionXLControlNetUnionInpaintPipeline",
]


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("nets", [2, 3])
def test_siblings_and_union_controlnets(name, nets):
    union = "Union" in name
    pipe = random_sdxl(nets, getattr(diffusers, name), union)
    assert family_of(pipe) == "sdxl"
    before = state(pipe)
    arguments = {"control_image": conditions(nets), "num_inference_steps": 4}
    if union:
        arguments["control_mode"] = [0, 3, 1][:nets]
    if "Img2Img" in name or "Inpaint" in name:
        size = {"height": 32, "width": 32, "strength": 0.8}
        picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        arguments.update(size, image=picture)
    if "Inpaint" in name:
        arguments["mask_image"] = torch.ones(1, 1, 32, 32)

    def make(**more):
        generator = torch.Generator().manual_seed(0)
        return pipe(PROMPT, generator=generator, output_type="latent", **arguments, **more).images

    plain = make()
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(make(), plain)
    with cross_controlnet(pipe, FULL) as control:
        assert not torch.equal(make(), plain)
        assert control.session.injected > 0
    one_off = {"controlnet_conditioning_scale": [0.0, *[1.0] * (nets - 1)]}
    plain = make(**one_off)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(make(**one_off), plain)
    assert state(pipe) == before


PAG = {
    "pag": {"pag_scale": 3.0},
    "pag without cfg": {"pag_scale": 3.0, "guidance_scale": 1.0},
    "pag off": {"pag_scale": 0.0},
}


@pytest.mark.parametrize("changes", PAG.values(), ids=PAG)
def test_perturbed_attention_guidance(changes):
    """Three rows per picture, or two: a batch of two prompts is two batches of one."""
    pipe = random_sdxl(kind=diffusers.StableDiffusionXLControlNetPAGPipeline)
    prompts = [PROMPT, "a ring over a star"]
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    images = [torch.cat((image, image.flip(-1))) for image in conditions()]

    def make(rows):
        mine = [image[rows] for image in images]
        return generate(pipe, prompts[rows], latents=noise[rows], image=mine, **changes)

    both, rows = slice(0, 2), (slice(0, 1), slice(1, 2))
    plain = make(both)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(make(both), plain)
    for more in ({}, {"mask_source": "silhouette"}):
        with cross_controlnet(pipe, {**FULL, "mask_threshold": 0.5, **more}) as control:
            ours, masks = make(both), control.session.place.mask
            assert control.session.injected == 2 * 8
            assert not torch.equal(*masks)
            for row, mask, one in zip(rows, masks, ours, strict=True):
                torch.testing.assert_close(make(row)[0], one, rtol=1e-3, atol=1e-3)
                assert torch.equal(control.session.place.mask[0], mask)
        assert not torch.allclose(ours, plain)


def test_two_units_may_share_a_union_controlnet():
    pipe = random_sdxl(2, diffusers.StableDiffusionXLControlNetUnionPipeline, True)
    pipe.controlnet.nets[1] = pipe.controlnet.nets[0]

    def make():
        generator = torch.Generator().manual_seed(0)
        more = {"control_image": conditions(), "control_mode": [0, 3], "num_inference_steps": 3}
        return pipe(PROMPT, generator=generator, output_type="latent", **more).images

    plain = make()
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(make(), plain)
    with cross_controlnet(pipe, {**FULL, "mask_source": "silhouette"}) as control:
        assert not torch.equal(make(), plain)
    assert control.session.injected == 2 * 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_reduction": 8}, "maps of the latent's size / 8, but of / 2, 4"),
        ({"mask_reduction": 3, "foreground_word": ""}, "maps of the latent's size / 3, but of / 2"),
        ({"start_layer": 5}, "start layer is 5, beyond the last (4): nothing is injected"),
        ({"start_layer": 4}, ""),
        ({"mask_reduction": 2}, ""),
        ({"start_step": 2, "show_mask": True}, ""),
    ],
)
def test_settings_that_cannot_act_say_why(pipe, changes, said):
    with cross_controlnet(pipe, {**FULL, "strict": False, **changes}) as control:
        generate(pipe, image=conditions(size=(64, 64)))
    assert (control.session.injected == 0) == bool(said)
    assert said in control.summary()
    assert bool(control.session.notes) == bool(said)


def test_bfloat16():
    half = random_sdxl().to(torch.bfloat16)
    with cross_controlnet(half, FULL) as control:
        ours = generate(half)
    assert control.session.injected > 0
    assert ours.dtype is torch.bfloat16
    assert torch.isfinite(ours).all()


def test_a_pooled_unit_is_a_bystander():
    """Its residuals have no place in the picture: they are added."""
    pipe = random_sdxl(nets=3)
    pipe.controlnet.nets[1].register_to_config(global_pool_conditions=True)
    plain = generate(pipe)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(generate(pipe), plain)
    with cross_controlnet(pipe, FULL) as control:
        assert not torch.equal(generate(pipe), plain)
    assert "1: ControlNetModel (bystander)" in control.summary()


def test_a_controlnet_of_stable_diffusion_15_is_refused(pipe):
    other = random_sdxl(
        cross_attention_dim=16, addition_embed_type=None, projection_class_embeddings_input_dim=None
    )
    mixed = random_sdxl()
    mixed.controlnet.nets[1] = other.controlnet.nets[0]
    said = r"ControlNet 1: ControlNetModel does not belong.*cross_attention_dim is 16.*32"
    with pytest.raises(ValueError, match=said), cross_controlnet(mixed):
        pass
    assert "forward" not in mixed.controlnet.__dict__
    with (
        pytest.raises(SettingsError, match="background_unit"),
        cross_controlnet(pipe, {"background_unit": 2}),
    ):
        pass


def test_one_controlnet_or_another_family_is_refused(pipe):
    single = diffusers.StableDiffusionXLControlNetPipeline(
        **{**pipe.components, "controlnet": pipe.controlnet.nets[0]}
    )
    with (
        pytest.raises(TypeError, match=r"ControlNetModel; expected.*list of ControlNets"),
        cross_controlnet(single),
    ):
        pass
    sd3 = type("Pipe", (), {"controlnet": diffusers.SD3MultiControlNetModel([])})()
    with (
        pytest.raises(TypeError, match="SD3MultiControlNetModel; expected one of Multi"),
        cross_controlnet(sd3),
    ):
        pass

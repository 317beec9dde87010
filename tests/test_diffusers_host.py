"""Cross-ControlNet on real diffusers pipelines with random weights."""

import base64
import io
import logging

import pytest
import torch
from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    UniPCMultistepScheduler,
)
from oracles import assert_pixels_follow_formula
from PIL import Image
from tiny import conditions, generate, tiny_controlnet, tiny_pipeline

from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings, SettingsError

NOTHING = {"fusion": "sum", "inject": False}
FULL = {"start_step": 1, "foreground_word": "star"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def three():
    return tiny_pipeline(nets=3)


CALLS = {
    "cfg": {},
    "no cfg": {"guidance_scale": 1.0},
    "guess mode": {"guess_mode": True},
    "scales": {"controlnet_conditioning_scale": [0.3, 1.7]},
    "one unit off": {"controlnet_conditioning_scale": [0.0, 1.0]},
    "ranges": {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]},
    "two prompts": {"prompt": ["a red star over a field", "blue water"]},
    "three pictures": {"num_images_per_prompt": 3},
    "wide": {"image": conditions(size=(24, 44))},
}


def call(pipe, changes):
    changes = dict(changes)
    prompt = changes.pop("prompt", "a red star over a green field")
    if isinstance(prompt, list) and "image" not in changes:
        changes["image"] = conditions(batch=len(prompt))
    return generate(pipe, prompt, **changes)


@pytest.mark.parametrize("changes", CALLS.values(), ids=CALLS)
def test_the_sum_without_injection_is_the_pipeline_bit_by_bit(pipe, changes):
    plain = call(pipe, changes)
    with cross_controlnet(pipe, NOTHING):
        ours = call(pipe, changes)
    assert torch.equal(ours, plain)
    assert torch.equal(call(pipe, changes), plain), "something of ours stayed in the pipeline"


@pytest.mark.parametrize("changes", CALLS.values(), ids=CALLS)
def test_the_method_changes_the_picture_and_repeats_itself(pipe, changes):
    plain = call(pipe, changes)
    with cross_controlnet(pipe, FULL) as control:
        first = call(pipe, changes)
        assert control.error is None
        second = call(pipe, changes)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    # Where never two units are on at the same time there is nothing to fuse.
    alone = {"one unit off", "ranges"} & {name for name, c in CALLS.items() if c is changes}
    assert torch.equal(first, plain) == bool(alone)


def test_three_units_sum_in_the_pipelines_own_order(three):
    plain = generate(three)
    with cross_controlnet(three, {**NOTHING, "foreground_unit": 2}):
        assert torch.equal(generate(three), plain)
    with cross_controlnet(three, {**FULL, "foreground_unit": 2}) as control:
        assert not torch.equal(generate(three), plain)
        assert control.error is None


@pytest.mark.parametrize(
    "kind", [StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetInpaintPipeline]
)
def test_the_sibling_pipelines(kind):
    pipe = tiny_pipeline(kind=kind)
    arguments = {
        "image": torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)),
        "control_image": conditions(),
        "strength": 0.8,
        "height": 32,
        "width": 32,
        "num_inference_steps": 5,
    }
    if kind is StableDiffusionControlNetInpaintPipeline:
        arguments["mask_image"] = torch.ones(1, 1, 32, 32)
    plain = generate(pipe, **arguments)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(generate(pipe, **arguments), plain)
    with cross_controlnet(pipe, FULL) as control:
        assert not torch.equal(generate(pipe, **arguments), plain)
        assert control.error is None
        assert control.session.injected > 0
    assert torch.equal(generate(pipe, **arguments), plain)


def test_the_unet_gets_what_the_formula_gives(pipe):
    """One generation's residuals, dumped per unit and fused again in float64."""
    units, received = {0: [], 1: []}, []
    undo = [
        net.register_forward_hook(lambda m, a, out, i=i: units[i].append([*out[0], out[1]]))
        for i, net in enumerate(pipe.controlnet.nets)
    ]

    def take(module, args, kwargs):
        down = kwargs["down_block_additional_residuals"]
        received.append([*down, kwargs["mid_block_additional_residual"]])

    undo.append(pipe.unet.register_forward_pre_hook(take, with_kwargs=True))
    try:
        with cross_controlnet(pipe, {**FULL, "fusion": "pix", "delta": 0.3}):
            generate(pipe, num_inference_steps=2)
    finally:
        for handle in undo:
            handle.remove()
    assert len(received) == 2
    for step, tensors in enumerate(received):
        for layer, fused in enumerate(tensors):
            pair = [units[0][step][layer], units[1][step][layer]]
            assert_pixels_follow_formula(pair, 0.3, fused, False)


def test_injecting_a_units_own_keys_changes_nothing():
    """Foreground and background are one ControlNet with one image, and the mask is all ones."""
    pipe = tiny_pipeline()
    same = tiny_controlnet(pipe.unet, 5)
    pipe.controlnet.nets[0] = pipe.controlnet.nets[1] = same
    image = conditions()[:1] * 2
    with cross_controlnet(pipe, NOTHING):
        plain = generate(pipe, image=image)
    settings = {"fusion": "sum", "mask_source": "all", "start_step": 0}
    with cross_controlnet(pipe, settings) as control:
        ours = generate(pipe, image=image)
    assert control.session.injected == 4 * 4, "four layers in each of four steps"
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    other = conditions()
    with cross_controlnet(pipe, settings):
        assert not torch.allclose(generate(pipe, image=other), generate(pipe, image=image))


def test_start_layer_and_start_step_decide_where_keys_go(pipe):
    counts = {}
    for start_layer, start_step in [(0, 1), (2, 1), (0, 3), (4, 1)]:
        settings = {**FULL, "start_layer": start_layer, "start_step": start_step}
        with cross_controlnet(pipe, settings) as control:
            generate(pipe)
        counts[start_layer, start_step] = control.session.injected
    assert counts == {(0, 1): 4 * 3, (2, 1): 2 * 3, (0, 3): 4 * 1, (4, 1): 0}


def test_a_batch_of_two_prompts_equals_two_batches_of_one(pipe):
    prompts = ["a red star over a green field", "sand and blue water"]
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    settings = {"start_step": 1}
    with cross_controlnet(pipe, settings) as control:
        both = generate(pipe, prompts, latents=noise, image=conditions(batch=2))
        assert control.session.place.usable.all()
        assert len(control.session.place.word.chosen) == 2
        for row, prompt in enumerate(prompts):
            alone = generate(pipe, prompt, latents=noise[row : row + 1])
            torch.testing.assert_close(both[row], alone[0], rtol=1e-3, atol=1e-3)


def test_a_picture_without_its_word_is_left_out_of_injection(pipe):
    prompts = ["a red star over a green field", "sand and blue water"]
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    image = conditions(batch=2)
    with cross_controlnet(pipe, {**FULL, "inject": False}):
        without = generate(pipe, prompts, latents=noise, image=image)
    with cross_controlnet(pipe, FULL) as control:
        ours = generate(pipe, prompts, latents=noise, image=image)
    assert control.session.place.usable.tolist() == [True, False]
    assert "'star' is not in the prompt" in control.summary()
    assert not torch.allclose(ours[0], without[0])
    torch.testing.assert_close(ours[1], without[1], rtol=1e-4, atol=1e-4)


def test_embeddings_of_a_long_prompt_come_with_their_text(pipe):
    prompt = "a green field " * 40 + "and a (red star:1.2)"
    embeddings = torch.randn(1, 2 * 77, 16, generator=torch.Generator().manual_seed(2))
    arguments = {"prompt_embeds": embeddings, "negative_prompt_embeds": embeddings * 0.5}
    with cross_controlnet(pipe, FULL, prompt=prompt, weighted=True) as control:
        generate(pipe, None, **arguments)
    assert control.session.injected > 0
    position = chosen_word(control).positions[0]
    assert position > 77, "the star stands in the second chunk"
    with cross_controlnet(pipe, FULL) as control:
        generate(pipe, None, **arguments)
    assert control.session.injected == 0
    assert "the prompt is not known" in control.summary()


def chosen_word(control):
    """The foreground word of the latest generation's only prompt."""
    (word,) = control.session.place.word._decided.values()
    return word


def painted(left_half: bool = True) -> str:
    picture = Image.new("L", (20, 20))
    picture.paste(255, (0, 0, 10, 20) if left_half else (0, 0, 20, 20))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_mask_sources(pipe):
    results = {}
    for source, image in [("all", None), ("silhouette", None), ("image", painted())]:
        settings = {"mask_source": source, "mask_image": image, "start_step": 0}
        with cross_controlnet(pipe, settings) as control:
            results[source] = generate(pipe)
        assert control.error is None
        assert control.session.injected == 4 * 4
        results[source, "mask"] = control.session.place.mask
    assert results["all", "mask"].all()
    assert results["image", "mask"][0, :, :10].all()
    assert not results["image", "mask"][0, :, 10:].any()
    square = results["silhouette", "mask"][0].nonzero()
    assert square.amin(0).tolist() == pytest.approx([2, 2], abs=1)
    assert square.amax(0).tolist() == pytest.approx([15, 13], abs=1)
    assert not torch.equal(results["all"], results["image"])
    full = {"mask_source": "image", "mask_image": painted(False), "start_step": 0}
    with cross_controlnet(pipe, full):
        torch.testing.assert_close(generate(pipe), results["all"])


@pytest.mark.parametrize(("reduction", "side"), [(2, 8), (4, 4)])
def test_the_mask_is_read_where_the_reduction_says(pipe, reduction, side):
    settings = {**FULL, "mask_reduction": reduction, "mask_threshold": 0.5}
    with cross_controlnet(pipe, settings) as control:
        generate(pipe)
    session = control.session
    assert session.place.heat.shape == session.place.mask.shape == (1, side, side)
    assert session.place.heat.min() == 0
    assert session.place.heat.max() == 1
    assert torch.equal(session.place.mask, session.place.heat >= 0.5)


def test_the_order_of_units_does_not_matter_but_their_roles_do(pipe):
    """The second unit as foreground equals the swapped pipeline with the first as foreground."""
    with cross_controlnet(pipe, {**FULL, "foreground_unit": 1}):
        ours = generate(pipe)
    swapped = tiny_pipeline()
    nets = swapped.controlnet.nets
    nets[0], nets[1] = nets[1], nets[0]
    with cross_controlnet(swapped, FULL):
        torch.testing.assert_close(
            generate(swapped, image=conditions()[::-1]), ours, rtol=1e-3, atol=1e-3
        )
        assert not torch.allclose(generate(swapped), ours)


def test_bfloat16(pipe):
    half = tiny_pipeline().to(torch.bfloat16)
    plain = generate(half)
    with cross_controlnet(half, FULL) as control:
        ours = generate(half)
    assert control.error is None
    assert ours.dtype is torch.bfloat16
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, plain)


def test_a_scheduler_exchanged_inside_the_block(pipe):
    pipe = tiny_pipeline()
    with cross_controlnet(pipe, FULL) as control:
        generate(pipe)
        before = control.session.injected
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
        generate(pipe)
        assert control.session.injected == before > 0
    assert "step" not in pipe.scheduler.__dict__


def test_refusals_name_what_is_wrong(pipe):
    with pytest.raises(SettingsError, match="delta"), cross_controlnet(pipe, {"delta": 2}):
        pass
    with (
        pytest.raises(SettingsError, match=r"foreground_unit.*0 to 1"),
        cross_controlnet(pipe, {"foreground_unit": 2}),
    ):
        pass
    with (
        pytest.raises(SettingsError, match="mask_image"),
        cross_controlnet(pipe, {"mask_source": "image"}),
    ):
        pass
    not_an_image = base64.b64encode(b"hello").decode()
    with (
        pytest.raises(SettingsError, match="mask_image"),
        cross_controlnet(pipe, {"mask_source": "image", "mask_image": not_an_image}),
    ):
        pass
    with pytest.raises(TypeError, match="MultiControlNetModel"), cross_controlnet(object()):
        pass
    with (
        cross_controlnet(pipe),
        pytest.raises(RuntimeError, match="another cross_controlnet block"),
        cross_controlnet(pipe),
    ):
        pass
    assert torch.isfinite(generate(pipe)).all()


def test_a_single_controlnet_in_a_list_is_left_alone():
    pipe = tiny_pipeline(nets=1)
    plain = generate(pipe)
    with cross_controlnet(pipe, FULL):
        assert torch.equal(generate(pipe), plain)


STAGES_OF_THE_METHOD = {
    "fusion": "lib_ccn.session.fuse_residuals",
    "mask": "lib_ccn.masking.scaled_map",
    "recorder": "lib_ccn.recorder.CrossAttentionRecorder._add",
    "grid": "lib_ccn.places.resize_mask",
    "rows": "lib_ccn.attention.Regions.groups",
    "prompt": "lib_ccn.hosts.diffusers.unet.tokenize",
}


@pytest.mark.parametrize("stage", STAGES_OF_THE_METHOD)
def test_an_error_in_the_method_costs_the_fusion_not_the_picture(pipe, stage, monkeypatch, caplog):
    plain = generate(pipe)

    def broken(*args, **kwargs):
        raise ArithmeticError("made for this test")

    settings = {**FULL, "fusion": "sum"} if stage != "fusion" else FULL
    with caplog.at_level(logging.WARNING), cross_controlnet(pipe, settings) as control:
        monkeypatch.setattr(STAGES_OF_THE_METHOD[stage], broken)
        ours = generate(pipe)
        monkeypatch.undo()
        # Until it breaks, nothing but the sum has been given to the UNet.
        assert torch.equal(ours, plain)
        warnings = [r for r in caplog.records if "made for this test" in r.getMessage()]
        assert len(warnings) == 1
        assert "made for this test" in control.summary()
        assert not torch.equal(generate(pipe), plain), "the next generation has the method again"


@pytest.mark.parametrize("stage", STAGES_OF_THE_METHOD)
def test_strict_raises_instead(pipe, stage, monkeypatch):
    def broken(*args, **kwargs):
        raise ArithmeticError("made for this test")

    with cross_controlnet(pipe, {**FULL, "strict": True}):
        monkeypatch.setattr(STAGES_OF_THE_METHOD[stage], broken)
        with pytest.raises(ArithmeticError, match="made for this test"):
            generate(pipe)


def test_kinds_of_settings(pipe):
    with cross_controlnet(pipe, Settings(**FULL)):
        one = generate(pipe)
    with cross_controlnet(pipe, FULL):
        two = generate(pipe)
    assert torch.equal(one, two)
    assert isinstance(pipe, StableDiffusionControlNetPipeline)

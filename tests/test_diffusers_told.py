"""What is said of a generation is what was done, and `strict` refuses what cannot be."""

import logging

import diffusers
import pytest
import torch
from tiny import conditions, generate, tiny_pipeline

from benchmarks.random_models import random_flux, random_sdxl
from demo.demo_model import BUNDLED
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import SettingsError

FULL = {"start_step": 1, "foreground_word": "star"}
STRICT = {**FULL, "strict": True}
bundled = pytest.mark.skipif(not BUNDLED.is_dir(), reason="models/demo is missing")


@pytest.fixture
def pipe():
    return tiny_pipeline()


def told(pipe, settings=FULL, prompt="a red star over a field", block=None, **changes):
    """The summary of one generation."""
    with cross_controlnet(pipe, settings, **(block or {})) as control:
        generate(pipe, prompt, **changes)
    return control.summary()


# Words


LITERAL = [
    ("star (red)", "a star (red) over a field", True),
    ("star (red)", "a star (red), over a field", True),
    ("(red) star", "a (red) star over a field", True),
    ("[old] star", "an [old] star", True),
    ("star", "a (star) over a field", True),
    ("star (red)", "a red star over a field", False),
    ("(star:1.2)", "a star over a field", False),
]


@pytest.mark.parametrize(("word", "prompt", "found"), LITERAL)
def test_prompts_are_literal(pipe, word, prompt, found):
    summary = told(pipe, {**FULL, "foreground_word": word}, prompt)
    assert ("is not in the prompt" in summary) != found
    assert f"'{word}' is not in" in summary or found, "the word is shown as it was given"


@pytest.mark.parametrize("word", ["star", "(star:1.2)", "red star", "(red star)"])
def test_where_the_prompt_is_weighted_brackets_are_weights(pipe, word):
    embeddings = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(2))
    summary = told(
        pipe,
        {**FULL, "foreground_word": word},
        None,
        {"prompt": "a ((red) star:1.3) over a field", "weighted": True},
        prompt_embeds=embeddings,
        negative_prompt_embeds=embeddings * 0.5,
    )
    assert "is not in the prompt" not in summary
    assert "nothing injected" not in summary


LONG = "a green field " * 40 + "and a star"


@pytest.mark.parametrize("copies", [1, 2])
def test_a_word_beyond_what_the_model_reads(pipe, copies):
    summary = told(pipe, FULL, [LONG] * copies, image=conditions(batch=copies))
    assert "word 'star' lies beyond the 75 tokens of the prompt that the model reads" in summary
    assert "beyond" not in told(pipe, FULL, "a star " + LONG)


@bundled
def test_a_word_beyond_what_sdxl_reads():
    pipe = random_sdxl()
    assert "'star' lies beyond the 75 tokens" in told(pipe, FULL, LONG)
    assert "'star' lies beyond the 75 tokens" in told(pipe, FULL, LONG, prompt_2="blue water")
    assert "beyond" not in told(pipe, FULL, LONG, prompt_2="a star"), "the second has it"


@bundled
@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
@pytest.mark.parametrize("length", [16, 32])
def test_a_word_beyond_what_flux_reads(length):
    pipe = random_flux()
    settings = {**FULL, "mask_source": "word"}
    arguments = {
        "image": None,
        "control_image": conditions(),
        "controlnet_conditioning_scale": [1.0, 1.0],
        "height": 32,
        "width": 32,
        "max_sequence_length": length,
    }
    said = f"'star' lies beyond the {length - 1} tokens"
    assert said in told_flux(pipe, settings, LONG, arguments)
    assert "beyond" not in told_flux(pipe, settings, "a star " + LONG, arguments)
    for word, prompt in (("star", "a (star) over"), ("star (red)", "a star (red), over")):
        named = {**settings, "foreground_word": word}
        assert "is not in the prompt" not in told_flux(pipe, named, prompt, arguments)


def told_flux(pipe, settings, prompt, arguments):
    given = {name: value for name, value in arguments.items() if name != "image"}
    with cross_controlnet(pipe, settings) as control:
        pipe(prompt, num_inference_steps=3, output_type="latent", **given)
    return control.summary()


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_source": "all"},
        {"mask_source": "silhouette"},
        {"inject": False},
        {"fusion": "sum", "inject": False},
    ],
    ids=str,
)
def test_embeddings_where_no_word_is_needed_are_no_matter(pipe, settings, caplog):
    embeddings = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(2))
    given = {"prompt_embeds": embeddings, "negative_prompt_embeds": embeddings * 0.5}
    with caplog.at_level(logging.WARNING):
        summary = told(pipe, {**FULL, **settings, "strict": True}, None, **given)
    assert "word" not in summary
    assert "Cross-ControlNet" not in caplog.text
    assert "the prompt is not known" in told(pipe, FULL, None, **given)


# What was done


OFF = {
    "a unit at weight 0": {"controlnet_conditioning_scale": [0.0, 1.0]},
    "the other": {"controlnet_conditioning_scale": [1.0, 0.0]},
    "ranges that never meet": {
        "control_guidance_start": [0.0, 0.5],
        "control_guidance_end": [0.5, 1.0],
    },
    "never on": {"control_guidance_start": [0.0, 0.95], "control_guidance_end": [0.9, 1.0]},
}


@pytest.mark.parametrize("changes", OFF.values(), ids=OFF)
def test_nothing_was_fused(pipe, changes):
    plain = generate(pipe, **changes)
    with cross_controlnet(pipe, FULL) as control:
        assert torch.equal(generate(pipe, **changes), plain)
    assert "pix+channel" not in control.summary()
    assert "nothing was fused" in control.summary()
    with (
        cross_controlnet(pipe, STRICT),
        pytest.raises(RuntimeError, match="never were two units that can be fused active at once"),
    ):
        generate(pipe, **changes)


def test_one_controlnet_alone_has_nothing_to_be_fused_with():
    one = tiny_pipeline(nets=1)
    assert "nothing was fused" in told(one)
    with cross_controlnet(one, STRICT), pytest.raises(RuntimeError, match="nothing was fused"):
        generate(one)


def test_ranges_that_meet_for_some_steps(pipe):
    summary = told(pipe, STRICT, control_guidance_end=[0.75, 1.0])
    assert "in 3 of 4 calls" in summary


def test_before_and_without_a_generation(pipe):
    with cross_controlnet(pipe, FULL) as control:
        assert control.summary() == "no generation yet"
        with pytest.raises(ValueError, match="has to be of type"):
            generate(pipe, prompt=7)
        assert control.session is None
        assert "did not come to its ControlNets" in control.summary()
        generate(pipe)
        assert "pix+channel" in control.summary()


@pytest.mark.parametrize(
    "broken", ["lib_ccn.hosts.diffusers.unet.tokenize", "lib_ccn.session.fuse_residuals"]
)
def test_after_standing_aside(pipe, broken, monkeypatch):
    def fails(*_args, **_kwargs):
        raise ArithmeticError("made for this test")

    with monkeypatch.context() as patch:
        patch.setattr(broken, fails)
        summary = told(pipe)
    assert "stood aside" in summary
    assert "ArithmeticError: made for this test" in summary
    assert "pix+channel" not in summary
    assert "KV-Injection in" not in summary
    assert "stood aside" not in told(pipe)


def test_an_interrupted_generation_misses_nothing(pipe):
    def stop(pipeline, *_):
        pipeline._interrupt = True
        return {}

    with cross_controlnet(pipe, {**STRICT, "start_step": 3}) as control:
        generate(pipe, callback_on_step_end=stop)
    assert not control.session.shortfalls


# Networks that cannot be heard


def compiled(network):
    return torch.compile(network, backend="eager")


def compile_in_place(network):
    network.compile(backend="eager")
    return network


def compile_blocks(network):
    for module in network.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            module.compile(backend="eager")
    return network


COMPILERS = [compiled, compile_in_place, compile_blocks]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_compiled_unet(pipe, compiler, warm):
    torch._dynamo.reset()
    pipe.unet = compiler(pipe.unet)
    if warm:
        generate(pipe)
    summary = told(pipe)
    assert "no mask: the backbone's attention is compiled (torch.compile)" in summary
    assert "mask_reduction" not in summary
    assert "is compiled" not in told(pipe, {**FULL, "mask_source": "all"})
    assert "nothing injected" not in told(pipe, {**FULL, "mask_source": "all"})


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=str)
def test_compiled_controlnets(pipe, compiler, which):
    torch._dynamo.reset()
    plain = generate(pipe)
    for number in which:
        pipe.controlnet.nets[number] = compiler(pipe.controlnet.nets[number])
    with cross_controlnet(pipe, FULL) as control:
        assert not torch.equal(generate(pipe), plain), "they are fused"
    summary = control.summary()
    for number in which:
        said = f"the attention of {number}: ControlNetModel is compiled (torch.compile)"
        assert said in summary
    assert "nothing injected" in summary
    assert torch.equal(generate(pipe), plain)


def test_all_controlnets_compiled_as_one(pipe):
    torch._dynamo.reset()
    with cross_controlnet(pipe, FULL):
        ours = generate(pipe)
    pipe.controlnet = compiled(pipe.controlnet)
    plain = generate(pipe)
    with cross_controlnet(pipe, FULL) as control:
        torch.testing.assert_close(generate(pipe), ours)
    assert control.session.injected > 0
    assert torch.equal(generate(pipe), plain)


def test_fused_projections_of_the_unet(pipe):
    pipe.fuse_qkv_projections(vae=False)
    summary = told(pipe)
    assert "no mask: the backbone's attention has fused projections" in summary
    assert "mask_reduction" not in summary
    with cross_controlnet(pipe, STRICT), pytest.raises(RuntimeError, match="fused projections"):
        generate(pipe)
    pipe.unfuse_qkv_projections(vae=False)
    assert "KV-Injection in layers 0 to 3, steps" in told(pipe)


def test_fused_projections_of_the_controlnets(pipe):
    plain = generate(pipe)
    for net in pipe.controlnet.nets:
        for module in net.modules():
            if hasattr(module, "fuse_projections"):
                module.fuse_projections(fuse=True)
        net.set_attn_processor(diffusers.models.attention_processor.FusedAttnProcessor2_0())
    with cross_controlnet(pipe, FULL) as control:
        assert not torch.equal(generate(pipe), plain)
    assert "ControlNetModel has fused projections (fuse_qkv_projections)" in control.summary()
    assert control.session.injected == 0


@bundled
@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
def test_fused_projections_of_flux_are_heard():
    pipe = random_flux()
    arguments = {
        "control_image": conditions(),
        "controlnet_conditioning_scale": [1.0, 1.0],
        "height": 32,
        "width": 32,
        "max_sequence_length": 16,
    }
    pipe.transformer.fuse_qkv_projections()
    for net in pipe.controlnet.nets:
        net.fuse_qkv_projections()
    settings = {**STRICT, "mask_source": "word"}
    assert "KV-Injection in layers 0 to 3, steps 1 to 2" in told_flux(
        pipe, settings, "a star", arguments
    )


# What strict refuses


@pytest.mark.parametrize(
    ("settings", "prompt", "said"),
    [
        ({"foreground_word": "ring"}, "a red star", "'ring' is not in the prompt"),
        ({"foreground_word": "star"}, LONG, "lies beyond the 75 tokens"),
        ({"foreground_word": "star", "inject": False, "show_mask": True}, "a ring", "not in the"),
    ],
)
def test_strict_refuses_an_absent_word_before_a_step_is_made(pipe, settings, prompt, said):
    steps = []
    with (
        cross_controlnet(pipe, {**STRICT, **settings}),
        pytest.raises(SettingsError, match=said),
    ):
        generate(pipe, prompt, callback_on_step_end=lambda *_: steps.append(1) or {})
    assert not steps
    told(pipe, {**FULL, **settings}, prompt)


def test_strict_refuses_a_word_of_a_prompt_that_is_not_known(pipe):
    embeddings = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(2))
    given = {"prompt_embeds": embeddings, "negative_prompt_embeds": embeddings * 0.5}
    with cross_controlnet(pipe, STRICT), pytest.raises(SettingsError, match="is not known"):
        generate(pipe, None, **given)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mask_reduction": 8}, "no cross-attention maps"),
        ({"start_step": 4}, "the units ran in steps 0 to 3 only"),
        ({"start_step": 50}, "the units ran in steps 0 to 3 only"),
    ],
)
def test_strict_refuses_what_did_not_come(pipe, settings, said):
    image = conditions(size=(40, 40))
    with cross_controlnet(pipe, {**STRICT, **settings}), pytest.raises(RuntimeError, match=said):
        generate(pipe, image=image)
    assert said in told(pipe, {**FULL, **settings}, image=image)

"""Cross-ControlNet on real FLUX pipelines with random weights."""

from __future__ import annotations

import logging

import diffusers
import pytest
import torch
from family_oracles import (
    NOTHING,
    PROMPT,
    assert_fused_by_formula,
    dumped,
    flux_projections,
    joint_attention_oracle,
    state,
)
from tiny import conditions

from lib_ccn.foreground import resize_mask
from lib_ccn.hosts.diffusers import cross_controlnet, family_of
from lib_ccn.hosts.diffusers.flux import clip_piece
from lib_ccn.joint_attention import JointAttentionRecorder, joint_attention_layers
from lib_ccn.playground.demo_model import BUNDLED
from lib_ccn.playground.random_models import random_flux
from lib_ccn.prompt import Word, find_word, words
from lib_ccn.settings import Settings, SettingsError

pytestmark = [
    pytest.mark.skipif(
        not BUNDLED.is_dir(), reason="the tokenizer comes from models/demo, which is missing"
    ),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning"),
]
FULL = {"start_step": 1, "strict": True}
WORD = {**FULL, "mask_source": "word", "foreground_word": "star", "mask_threshold": 0.4}


@pytest.fixture(scope="module")
def pipe():
    return random_flux()


@pytest.fixture(scope="module")
def three():
    return random_flux(nets=3)


def generate(pipe, prompt=PROMPT, seed=0, **changes):
    """One generation's final latents; equal seeds give equal noise."""
    images = changes.pop("control_image", None) or conditions(len(pipe.controlnet.nets))
    arguments = {
        "control_image": images,
        # With several ControlNets this pipeline takes no single number, its own default included.
        "controlnet_conditioning_scale": [1.0] * len(images),
        "num_inference_steps": 3,
        "height": images[0].shape[-2],
        "width": images[0].shape[-1],
        "max_sequence_length": 16,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        **changes,
    }
    return pipe(prompt, **arguments).images


CALLS = {
    "plain": {},
    "scales": {"controlnet_conditioning_scale": [0.3, 1.7]},
    "ranges": {"control_guidance_end": [0.7, 1.0]},
    "two prompts": {"prompt": [PROMPT, "blue water"], "control_image": conditions(batch=2)},
    "two pictures": {"num_images_per_prompt": 2},
    "true guidance": {"negative_prompt": "blue water", "true_cfg_scale": 2.5},
    "wide": {"control_image": conditions(size=(24, 44))},
}


@pytest.mark.parametrize("changes", CALLS.values(), ids=CALLS)
def test_the_sum_without_injection_is_the_pipeline_bit_by_bit(pipe, changes):
    before = state(pipe)
    plain = generate(pipe, **changes)
    with cross_controlnet(pipe, NOTHING) as control:
        ours = generate(pipe, **changes)
        assert control.session.error is None
    assert torch.equal(ours, plain)
    with cross_controlnet(pipe, WORD) as control:
        first = generate(pipe, **changes)
        assert control.session.injected > 0
        assert torch.equal(generate(pipe, **changes), first)
    assert torch.isfinite(first).all()
    assert not torch.equal(first, plain)
    assert torch.equal(generate(pipe, **changes), plain), "something stayed in the pipeline"
    assert state(pipe) == before


@pytest.mark.parametrize("start_layer", [0, 1, 3, 4])
def test_three_units(three, start_layer):
    plain = generate(three)
    with cross_controlnet(three, {**NOTHING, "foreground_unit": 2}):
        assert torch.equal(generate(three), plain)
    settings = {**FULL, "foreground_unit": 2, "start_layer": start_layer}
    with cross_controlnet(three, settings) as control:
        assert not torch.equal(generate(three), plain)
    injected = 2 * 2 * (4 - start_layer)
    assert control.session.injected == injected, "two background units, two steps, four layers"


@pytest.mark.parametrize("blocks", [(2, 2), (2, 0)], ids=["both streams", "double stream alone"])
def test_the_transformer_gets_what_the_formula_gives(blocks):
    pipe = random_flux(blocks=blocks)
    units, received = {}, {}
    undo = [
        net.register_forward_hook(lambda m, a, out, i=i: units.update({i: out}))
        for i, net in enumerate(pipe.controlnet.nets)
    ]
    undo.append(
        pipe.transformer.register_forward_pre_hook(
            lambda m, a, kwargs: received.update(kwargs), with_kwargs=True
        )
    )
    with cross_controlnet(pipe, {**FULL, "delta": 0.3}):
        generate(pipe, control_image=conditions(size=(16, 24)))
    for handle in undo:
        handle.remove()

    def maps(streams):
        tokens = [t for stream in streams if stream is not None for t in stream]
        return [t.transpose(1, 2).reshape(1, 32, 4, 6) for t in tokens]

    names = ("controlnet_block_samples", "controlnet_single_block_samples")
    fused = [received[name] for name in names]
    assert [None if stream is None else len(stream) for stream in fused] == [2, blocks[1] or None]
    assert_fused_by_formula([maps(units[0]), maps(units[1])], maps(fused), 0.3)


@pytest.mark.parametrize("source", ["all", "word"])
def test_injected_attention_is_equation_9(pipe, source):
    """Both kinds of block from dumped inputs, against float64; the text as without injection."""
    first, second = (
        {layer.name: layer.module for layer in joint_attention_layers(net)}
        for net in pipe.controlnet.nets
    )
    assert list(second) == [
        "transformer_blocks.0.attn",
        "transformer_blocks.1.attn",
        "single_transformer_blocks.0.attn",
        "single_transformer_blocks.1.attn",
    ]
    settings = {**WORD, "mask_source": source, "start_layer": 1}
    with dumped(first) as one, dumped(second) as two, cross_controlnet(pipe, settings) as control:
        generate(pipe)
    mask = resize_mask(control.session.mask, (8, 8))[0]
    assert mask.all() if source == "all" else 0 < mask.float().mean() < 1
    for number, (name, module) in enumerate(second.items()):
        (given, out), (given1, _) = two[name], one[name]
        parts = (module, first[name], given, given1, mask)
        want = joint_attention_oracle(*parts, injected=number >= 1)
        plain = joint_attention_oracle(*parts, injected=False)
        out, want, plain = (
            torch.cat(t[::-1], 1) if isinstance(t, tuple) else t for t in (out, want, plain)
        )
        torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)
        text = out.shape[1] - len(mask)
        assert text == 16
        torch.testing.assert_close(out[:, :text].double(), plain[:, :text], rtol=1e-4, atol=1e-4)
        assert torch.allclose(out[:, text:].double(), plain[:, text:], atol=1e-3) == (number < 1)


def test_the_words_map_is_the_transformers_own_attention(pipe):
    """Image queries to text keys, over the text, averaged over heads and double-stream blocks."""
    layers = {str(i): block.attn for i, block in enumerate(pipe.transformer.transformer_blocks)}
    recorder = JointAttentionRecorder(pipe.transformer)
    with dumped(layers) as seen, recorder:
        undo = pipe.transformer.register_forward_pre_hook(
            lambda *_: recorder.begin_call((8, 8), range(1))
        )
        generate(pipe, num_inference_steps=1)
        undo.remove()
        maps = recorder.take()
    assert maps.shape == (1, 16, 8, 8)
    want = 0
    for name, attn in layers.items():
        q, k, _ = flux_projections(attn, seen[name][0])
        logits = q[:, :, 16:] @ k[:, :, :16].mT / q.shape[-1] ** 0.5
        want = want + logits.softmax(-1).mean(1) / len(layers)
    torch.testing.assert_close(maps.flatten(2).mT.double(), want, rtol=1e-4, atol=1e-6)


def test_the_negative_prompts_pass_is_not_read(pipe, monkeypatch):
    added = []
    own = JointAttentionRecorder._add
    monkeypatch.setattr(
        JointAttentionRecorder, "_add", lambda self, *a: (added.append(1), own(self, *a))
    )
    with cross_controlnet(pipe, WORD) as control:
        generate(pipe)
        once, heat = len(added), control.session.heat
        generate(pipe, negative_prompt="a star in blue water", true_cfg_scale=3.0)
    assert once == 3 * 3, "three double-stream blocks in each of three steps"
    assert len(added) == 2 * once
    assert not torch.equal(control.session.heat, heat), "the picture itself became another"


def test_defaults_are_the_papers_where_a_mapping_is_silent(pipe):
    def used(settings):
        with cross_controlnet(pipe, settings) as control:
            s = control.settings
            return s.delta, s.start_step, s.mask_source

    assert used(None) == used({}) == (0.5, 3, "all")
    assert used({"delta": 0.7, "mask_source": "word"}) == (0.7, 3, "word")
    assert used(Settings()) == (0.7, 5, "word"), "a Settings object says everything"


def test_the_word_is_looked_for_in_the_t5_prompt(pipe):
    with cross_controlnet(pipe, WORD) as control:
        generate(pipe, "nothing", prompt_2="a ring over a red star")
        assert control.session._word._words[0].positions == (5,), "T5 has no token in front"
        generate(pipe, "a star", prompt_2="blue water")
    assert control.session.injected == 0
    assert "word 'star' is not in the prompt" in control.summary()
    with cross_controlnet(pipe, {**WORD, "foreground_word": ""}) as control:
        generate(pipe)
    assert control.session._word._words[0].text in {"red", "star", "green", "field"}


def test_t5_pieces(pipe):
    with cross_controlnet(pipe, FULL) as control:
        found = control.tokenize("a greenish star", 16)
        short = control.tokenize("a ring over a red star", 4)
    pieces = ["\u2581a", "\u2581green", "ish", ",", "\u2581", "\u2581star"]
    written = [clip_piece(p, pieces[i + 1 : i + 2]) for i, p in enumerate(pieces)]
    assert written == ["a</w>", "green", "ish</w>", ",</w>", "", "star</w>"]
    assert words(found)[0] == Word("greenish", (1, 2, 3, 4))
    assert find_word(found, [found.tokens[-1].id]) == [5]
    assert len(short.tokens) == 3
    assert len(short.dropped) == 3


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a red star, near a ring.", {"red": (1,), "star": (2,), "ring": (6,)}),
        ('a "red" (star): ring!', {"red": None, "star": None, "ring": None}),
        ("star-heart,ring 2", {"star": (0,), "heart": None, "ring": None}),
        ("a star's ring", {"star": (1,), "ring": (4,)}),
    ],
)
def test_words_have_no_punctuation(pipe, prompt, found):
    with cross_controlnet(pipe, FULL) as control:
        got = words(control.tokenize(prompt, 32))
    assert [word.text for word in got] == list(found)
    assert all(found[word.text] in (word.positions, None) for word in got)


def test_prompt_embeddings_come_with_their_text(pipe):
    embedded, pooled, _ = pipe.encode_prompt(PROMPT, max_sequence_length=16)
    arguments = {"prompt_embeds": embedded, "pooled_prompt_embeds": pooled}
    weighted = "a (red star:1.3) over a green field"
    with cross_controlnet(pipe, WORD, prompt=weighted, weighted=True) as control:
        generate(pipe, None, **arguments)
        assert control.session._word._words[0].positions == (2,)
    with cross_controlnet(pipe, WORD) as control:
        generate(pipe, None, **arguments)
    assert "the prompt is not known" in control.summary()


def test_mask_sources(pipe):
    results = {}
    for source in ("all", "silhouette", "word"):
        with cross_controlnet(pipe, {**WORD, "mask_source": source}) as control:
            results[source] = generate(pipe, control_image=conditions(size=(32, 40)))
        results[source, "mask"] = control.session.mask
    assert results["all", "mask"].all()
    square = results["silhouette", "mask"][0].nonzero()
    assert square.amin(0).tolist() == pytest.approx([2, 2], abs=1)
    assert results["word", "mask"].shape == (1, 8, 10), "the grid of the image tokens"
    assert not torch.equal(results["all"], results["silhouette"])


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
    mask = resize_mask(control.session.mask, (8, 8))[0]
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
    assert control.session.error is None
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


def test_bfloat16():
    pipe = random_flux().to(torch.bfloat16)
    with cross_controlnet(pipe, WORD) as control:
        ours = generate(pipe)
    assert control.session.injected == 2 * 4
    assert ours.dtype is torch.bfloat16
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("chosen", ["_native_math", "flash"])
def test_a_chosen_attention_function(chosen):
    """One of torch's is kept; any other (it need not even be installed) is set aside and back."""
    pipe = random_flux()
    processors = [
        layer.module.processor
        for net in pipe.controlnet.nets
        for layer in joint_attention_layers(net)
    ]
    for processor in processors:
        processor._attention_backend = chosen
    before = state(pipe)
    used = set()
    first = pipe.controlnet.nets[0].transformer_blocks[0].attn
    hook = first.to_q.register_forward_hook(lambda *_: used.add(first.processor._attention_backend))
    with cross_controlnet(pipe, {**FULL, "start_step": 0}) as control:
        generate(pipe)
    hook.remove()
    assert control.session.injected == 3 * 4
    assert used == {"_native_math" if chosen == "_native_math" else "native"}
    assert state(pipe) == before


def test_offloaded_controlnets_are_brought_before_they_run():
    """As accelerate does it: a forward in front of the module's own brings the weights."""
    pipe = random_flux()
    nets, brought = pipe.controlnet, []
    plain = generate(pipe)
    nets._old_forward = nets.forward

    def bring_and_run(*args, **kwargs):
        brought.append(1)
        return nets._old_forward(*args, **kwargs)

    nets.forward = bring_and_run
    before = state(pipe)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(generate(pipe), plain)
    with cross_controlnet(pipe, FULL) as control:
        assert not torch.equal(generate(pipe), plain)
        assert control.session.injected > 0
    assert len(brought) == 2 * 3
    assert state(pipe) == before


def test_what_is_captured_is_bounded_and_let_go(pipe, monkeypatch):
    """One key and one value per layer and token of the sequence, gone with the fusion."""
    sizes = []
    from lib_ccn.session import Session

    own = Session.fuse

    def watch(self, residuals):
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for pair in self._store.values()
            for t in pair
        }
        sizes.append(sum(storages.values()))
        result = own(self, residuals)
        assert not self._store
        return result

    monkeypatch.setattr(Session, "fuse", watch)
    with cross_controlnet(pipe, FULL) as control:
        generate(pipe)
    layers, tokens, text, channels, word = 4, 64, 16, 32, 4
    assert sizes[0] == 0
    assert 2 * layers * tokens * channels * word < sizes[1]
    assert sizes[1] <= 2 * layers * (text + tokens) * channels * word
    assert not control.session._masks


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
    settings = {**WORD, "start_step": 0}
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
        "lib_ccn.joint_attention.joint_region_attention",
        "lib_ccn.joint_attention.JointAttentionRecorder._add",
        "lib_ccn.joint_attention.row_groups",
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

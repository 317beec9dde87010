"""Foreground masks: the word of the T5 prompt, and the other sources."""

from __future__ import annotations

import pytest
import torch
from family_oracles import PROMPT, dumped, flux_projections, state
from tiny import conditions

from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.hosts.diffusers.flux import FluxGeneration
from lib_ccn.joint_attention import JointAttentionRecorder
from lib_ccn.prompt import Word, find_word, words
from lib_ccn.settings import Settings
from lib_ccn.spelling import clip_piece

from .generation import MARKS, WORD, generate

pytestmark = MARKS


def chosen_word(control):
    """The foreground word of the latest generation's only prompt."""
    (word,) = control.session.place.word._decided.values()
    return word


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

    def add(self, kind, layers):
        added.append(len(layers))
        own(self, kind, layers)

    monkeypatch.setattr(JointAttentionRecorder, "_add", add)
    with cross_controlnet(pipe, WORD) as control:
        generate(pipe)
        once, heat = sum(added), control.session.place.heat
        generate(pipe, negative_prompt="a star in blue water", true_cfg_scale=3.0)
    assert once == 3 * 3, "three double-stream blocks in each of three steps"
    assert sum(added) == 2 * once
    assert not torch.equal(control.session.place.heat, heat), "the picture itself became another"


def test_defaults_are_the_papers_where_a_mapping_is_silent(pipe):
    def used(settings):
        with cross_controlnet(pipe, settings) as control:
            s = control.settings
            return s.delta, s.at_steps(28).start_step, s.mask_source

    assert used(None) == used({}) == (0.5, 3, "all")
    assert used({"delta": 0.7, "mask_source": "word"}) == (0.7, 3, "word")
    assert used(Settings()) == (0.7, 3, "word"), "a Settings object says everything"


def test_the_word_is_looked_for_in_the_t5_prompt(pipe):
    with cross_controlnet(pipe, {**WORD, "strict": False}) as control:
        generate(pipe, "nothing", prompt_2="a ring over a red star")
        assert chosen_word(control).positions == (5,), "T5 has no token in front"
        generate(pipe, "a star", prompt_2="blue water")
    assert control.session.injected == 0
    assert "word 'star' is not in the prompt" in control.summary()
    with cross_controlnet(pipe, {**WORD, "foreground_word": ""}) as control:
        generate(pipe)
    assert chosen_word(control).text in {"red", "star", "green", "field"}


def test_t5_pieces(pipe):
    generation = FluxGeneration(pipe, Settings())
    found = generation.tokenize("a greenish star", 16)
    short = generation.tokenize("a ring over a red star", 4)
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
    got = words(FluxGeneration(pipe, Settings()).tokenize(prompt, 32))
    assert [word.text for word in got] == list(found)
    assert all(found[word.text] in (word.positions, None) for word in got)


def test_prompt_embeddings_come_with_their_text(pipe):
    embedded, pooled, _ = pipe.encode_prompt(PROMPT, max_sequence_length=16)
    arguments = {"prompt_embeds": embedded, "pooled_prompt_embeds": pooled}
    weighted = "a (red star:1.3) over a green field"
    with cross_controlnet(pipe, WORD, prompt=weighted, weighted=True) as control:
        generate(pipe, None, **arguments)
        assert chosen_word(control).positions == (2,)
    with cross_controlnet(pipe, {**WORD, "strict": False}) as control:
        generate(pipe, None, **arguments)
    assert "the prompt is not known" in control.summary()


def test_mask_sources(pipe):
    results = {}
    for source in ("all", "silhouette", "word"):
        with cross_controlnet(pipe, {**WORD, "mask_source": source}) as control:
            results[source] = generate(pipe, control_image=conditions(size=(32, 40)))
        results[source, "mask"] = control.session.place.mask
    assert results["all", "mask"].all()
    square = results["silhouette", "mask"][0].nonzero()
    assert square.amin(0).tolist() == pytest.approx([2, 2], abs=1)
    assert results["word", "mask"].shape == (1, 8, 10), "the grid of the image tokens"
    assert not torch.equal(results["all"], results["silhouette"])


def test_the_transformer_has_one_recorder_though_it_has_an_attn2(pipe):
    """As a backbone may that attends to something else besides, an adapter's image, say."""
    other = torch.nn.Module()
    other.to_q, other.to_k = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    pipe.transformer.transformer_blocks[0].attn2 = other
    before, seen = state(pipe), []

    def look(*_):
        seen.extend(len(module._forward_hooks) for module in other.modules())

    hook = pipe.transformer.register_forward_pre_hook(look)
    try:
        with cross_controlnet(pipe, WORD) as control:
            generate(pipe)
    finally:
        hook.remove()
        before_removal = state(pipe)
        del pipe.transformer.transformer_blocks[0].attn2
    assert control.session.injected > 0
    assert seen
    assert not any(seen)
    assert before_removal == before

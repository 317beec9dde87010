"""The sum bit by bit, fusion and injection by their formulas."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from family_oracles import (
    NOTHING,
    PROMPT,
    assert_fused_by_formula,
    assert_sum_is_the_pipelines,
    dumped,
    joint_attention_oracle,
    state,
)
from tiny import conditions

from benchmarks.random_models import random_flux
from lib_ccn.foreground import resize_mask
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.joint_attention import joint_attention_layers

from .generation import FULL, MARKS, WORD, generate

pytestmark = MARKS


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
    assert_sum_is_the_pipelines(pipe, WORD, partial(generate, pipe, **changes))


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
    mask = resize_mask(control.session.place.mask, (8, 8))[0]
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
            for store in self._stores.values()
            for pair in store.values()
            for t in pair
        }
        sizes.append(sum(storages.values()))
        result = own(self, residuals)
        assert not self._stores
        return result

    monkeypatch.setattr(Session, "fuse", watch)
    with cross_controlnet(pipe, FULL) as control:
        generate(pipe)
    layers, tokens, text, channels, word = 4, 64, 16, 32, 4
    assert sizes[0] == 0
    assert 2 * layers * tokens * channels * word < sizes[1]
    assert sizes[1] <= 2 * layers * (text + tokens) * channels * word
    assert not control.session.places._made

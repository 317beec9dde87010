"""Capturing and injecting on one self-attention of a host."""

import pytest
import torch
from torch import nn

from lib_ccn.regions import Regions
from lib_ccn.unet_attention import capture_keys_values, inject_keys_values, self_attention_layers

from .blocks import Block, LdmAttention, untouched
from .oracle import HEADS, equation_9, random_mask

diffusers = pytest.importorskip("diffusers")
from diffusers.models.attention_processor import (  # noqa: E402
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
)


def host_block(kind, seed):
    torch.manual_seed(seed)
    if kind == "ldm":
        return Block(LdmAttention(32, HEADS)).double()
    processor = {"plain": AttnProcessor, "sdpa": AttnProcessor2_0}[kind]()
    return Block(Attention(32, heads=HEADS, dim_head=8, processor=processor)).double()


def inject(fg, bg, x_fg, x_bg, foreground, **kwargs):
    store = {}
    with torch.no_grad():
        with capture_keys_values(self_attention_layers(fg), store):
            fg(x_fg)
        layers = self_attention_layers(bg)
        with inject_keys_values(layers, [store], lambda *_: Regions(foreground)) as tally:
            return bg(x_bg, **kwargs), tally


def expected_output(fg, bg, x_fg, x_bg, mask):
    own, other = bg.attn1, fg.attn1
    with torch.no_grad():
        projected = (own.to_q(x_bg), own.to_k(x_bg), own.to_v(x_bg))
        out = equation_9(*projected, other.to_k(x_fg), other.to_v(x_fg), mask, HEADS)
        return (own.to_out if isinstance(own.to_out, nn.Linear) else own.to_out[0])(out)


@pytest.mark.parametrize("kind", ["ldm", "plain", "sdpa"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_hosts_own_attention_gives_equation_9(kind, fraction):
    fg, bg = host_block(kind, 1), host_block(kind, 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25, fraction)
    out, tally = inject(fg, bg, x_fg, x_bg, mask)
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))
    assert (tally.injected, tally.unchanged) == (1, 0)


def test_two_units_may_share_one_module():
    block = host_block("ldm", 1)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    out, _ = inject(block, block, x_fg, x_bg, mask)
    torch.testing.assert_close(out, expected_output(block, block, x_fg, x_bg, mask))


@pytest.mark.parametrize("name", ["context", "value", "mask"])
def test_a_call_that_is_no_plain_self_attention_is_left_alone(name):
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg, context = torch.randn(3, 2, 25, 32, dtype=torch.float64)
    extra = {name: torch.randn(25, 25).double() if name == "mask" else context}
    out, tally = inject(fg, bg, x_fg, x_bg, random_mask(2, 25), **extra)
    assert torch.equal(out, bg(x_bg, **extra))
    assert (tally.injected, tally.unchanged) == (0, 1)


def test_named_arguments_of_the_host_pass_through():
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    extra = {"context": None, "value": None, "mask": None, "transformer_options": {"a": 1}}
    out, _ = inject(fg, bg, x_fg, x_bg, mask, **extra)
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))


@pytest.mark.parametrize("what", ["no mask", "other batch", "other channels", "no hooks fired"])
def test_what_does_not_fit_runs_unchanged(what):
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x = torch.randn(2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    captured = (fg.attn1.to_k(x), fg.attn1.to_v(x))
    if what == "other batch":
        captured = tuple(t[:1] for t in captured)
    elif what == "other channels":
        captured = tuple(t[..., 1:] for t in captured)
    store = {"attn1": captured}
    if what == "no hooks fired":
        bg.attn1.forward = lambda x, context=None: x
    mask_for = (lambda *_: None) if what == "no mask" else (lambda *_: Regions(mask))
    with inject_keys_values(self_attention_layers(bg), [store], mask_for) as tally:
        out = bg(x)
    assert torch.equal(out, bg(x))
    assert (tally.injected, tally.unchanged) == (0, 1)


def test_a_wrong_mask_is_refused_and_nothing_stays():
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x = torch.randn(2, 25, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"regions_for\(\)"):
        inject(fg, bg, x, x, random_mask(2, 24))
    assert untouched(bg)


def test_a_class_wide_replacement_of_forward_is_followed(monkeypatch):
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    calls = []
    plain = LdmAttention.forward

    def replacement(self, x, context=None, **kwargs):
        calls.append(x.shape[1])
        return plain(self, x, context, **kwargs)

    monkeypatch.setattr(LdmAttention, "forward", replacement)
    out, _ = inject(fg, bg, x_fg, x_bg, mask)
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))
    assert calls[:2] == [25, 25]
    assert len(calls) == 2 + 2 * 2, "to capture, to see how, for each side of each row"


def test_an_instance_forward_is_called_and_put_back():
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    calls = []
    plain = bg.attn1.forward

    def patched(*args, **kwargs):
        calls.append(args[0].shape[1])
        return plain(*args, **kwargs)

    bg.attn1.forward = patched
    out, _ = inject(fg, bg, x_fg, x_bg, mask)
    assert bg.attn1.__dict__["forward"] is patched
    assert sum(calls) == 25 + 2 * 25
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))


def test_a_hosts_hook_on_the_block_fires_once():
    fg, bg = host_block("sdpa", 1), host_block("sdpa", 2)
    x = torch.randn(2, 25, 32, dtype=torch.float64)
    seen = []
    bg.attn1.register_forward_hook(lambda _m, _a, out: seen.append(out))
    out, _ = inject(fg, bg, x, x, random_mask(2, 25))
    assert len(seen) == 1
    assert seen[0] is out


def test_rows_without_a_usable_mask_run_as_ever():
    torch.manual_seed(0)
    unit = nn.Module()
    unit.attn1 = Attention(8, heads=2, dim_head=4)
    layers = self_attention_layers(unit)
    x, other = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    plain, store = unit.attn1(x), {}
    with capture_keys_values(layers, store):
        unit.attn1(other)
    mask = torch.tensor([1, 0, 0, 1, 0]).bool().expand(3, -1)
    usable = torch.tensor([False, True, False])
    with inject_keys_values(layers, [store], lambda *_: Regions(mask, usable)):
        out = unit.attn1(x)
    torch.testing.assert_close(out[[0, 2]], plain[[0, 2]])
    assert not torch.allclose(out[1], plain[1])
    with inject_keys_values(layers, [store], lambda *_: Regions(mask)):
        everywhere = unit.attn1(x)
    torch.testing.assert_close(everywhere[1], out[1])

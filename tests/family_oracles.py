"""What the tests of SDXL and FLUX share: pictures to condition on, dumps, formulas in float64."""

from __future__ import annotations

import inspect
import itertools
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from oracles import MARGIN, assert_pixels_follow_formula

from lib_ccn.hosts.diffusers import cross_controlnet

PROMPT = "a red star over a green field"
NOTHING = {"fusion": "sum", "inject": False}


def state(pipe):
    """Everything that a generation could leave changed in the pipeline's parts."""
    seen = {"pipe": {key for key, value in pipe.__dict__.items() if inspect.isroutine(value)}}
    seen["scheduler"] = {key for key, value in pipe.scheduler.__dict__.items() if callable(value)}
    parts = {name: part for name, part in pipe.components.items() if "text_encoder" not in name}
    for title, part in parts.items():  # transformers leaves hooks of its own in its models
        for name, module in part.named_modules() if isinstance(part, torch.nn.Module) else ():
            hooks = {k: len(v) for k, v in module.__dict__.items() if k.endswith("_hooks")}
            own = {k for k, v in module.__dict__.items() if callable(v)}
            processor = dict(vars(module.processor)) if hasattr(module, "processor") else {}
            seen[title, name] = (hooks, own, processor)
    return seen


@contextmanager
def dumped(modules):
    """Last inputs and outputs by name, {name: (keyword arguments, output)}, of modules by name."""
    seen, undo = {}, []
    for name, module in modules.items():
        names = list(inspect.signature(type(module).forward).parameters)[1:]

        def take(_module, args, kwargs, output, name=name, names=names):
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            seen[name] = (given, output)

        undo.append(module.register_forward_hook(take, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in undo:
            handle.remove()


def assert_fused_by_formula(units, fused, delta):
    """`units` and `fused` as maps: PixFusion on all but the last, ChannelFusion on that."""
    *others, last = zip(*units, strict=True)
    assert len(fused) == len(others) + 1
    for pair, result in zip(others, fused[:-1], strict=True):
        assert_pixels_follow_formula(list(pair), delta, result, False)
    assert_channels_follow_formula(list(last), delta, fused[-1])


def assert_channels_follow_formula(units, delta, fused):
    """Equations 6-8; a channel decided by less than MARGIN is left out."""
    decided = 0
    for b, c in itertools.product(range(len(fused)), range(fused.shape[1])):
        f = [unit[b, c].double() for unit in units]
        std = [(v - v.mean()).square().mean().sqrt().item() for v in f]
        if any(0 < abs(s - delta * max(std)) < MARGIN * max(std) for s in std):
            continue
        kept = [i for i, s in enumerate(std) if s >= delta * max(std)]
        want = sum(std[i] * f[i] for i in kept) / sum(std[i] for i in kept)
        torch.testing.assert_close(fused[b, c].double(), want, rtol=1e-5, atol=1e-5)
        decided += 1
    assert decided > 0


def linear(layer, x):
    """A linear layer's result in float64."""
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


def split(x, heads):
    """[B, N, C] to [B, heads, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def masked_attention(q, k, v, allowed):
    """softmax(q k^T / sqrt(d) + log allowed) v over [B, heads, N, d]; `allowed` is [N, M]."""
    logits = q @ k.mT / q.shape[-1] ** 0.5 + allowed.double().log()
    return logits.softmax(-1) @ v


def self_attention_oracle(background, foreground, x2, x1, mask, injected=True):
    """Equation 9 as the paper writes it: an `Attention` of diffusers' at tokens x2 [B, N, C]."""
    heads = background.heads
    q2, k2, v2 = (
        split(linear(layer, x2), heads)
        for layer in (background.to_q, background.to_k, background.to_v)
    )
    k1, v1 = (split(linear(layer, x1), heads) for layer in (foreground.to_k, foreground.to_v))
    everything = torch.ones_like(mask)
    fg = masked_attention(q2, k1, v1, mask)
    keys, values = torch.cat((k2, k1), 2), torch.cat((v2, v1), 2)
    bg = masked_attention(q2, keys, values, torch.cat((everything, ~mask)))
    out = (
        torch.where(mask[:, None], fg, bg) if injected else masked_attention(q2, k2, v2, everything)
    )
    return linear(background.to_out[0], out.transpose(1, 2).flatten(2))


def flux_projections(attn, given):
    """Queries, keys and values [B, heads, text + image, d] of a FLUX attention, in float64."""
    text, image = given.get("encoder_hidden_states"), given["hidden_states"]

    def heads_of(layer, x, norm=None):
        x = linear(layer, x).unflatten(-1, (attn.heads, -1))
        if norm is not None:
            size = x.square().mean(-1, keepdim=True) + norm.eps
            x = x / size.sqrt() * norm.weight.double()
        return x.transpose(1, 2)

    parts = [
        [heads_of(attn.to_q, image, attn.norm_q)],
        [heads_of(attn.to_k, image, attn.norm_k)],
        [heads_of(attn.to_v, image)],
    ]
    if text is not None:
        parts[0].insert(0, heads_of(attn.add_q_proj, text, attn.norm_added_q))
        parts[1].insert(0, heads_of(attn.add_k_proj, text, attn.norm_added_k))
        parts[2].insert(0, heads_of(attn.add_v_proj, text))
    q, k, v = (torch.cat(part, 2) for part in parts)
    cos, sin = given["image_rotary_emb"]
    turn = torch.complex(cos.double()[:, ::2], sin.double()[:, ::2])

    def turned(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(3)

    return turned(q), turned(k), v


def joint_attention_oracle(background, foreground, given2, given1, mask, injected=True):
    """Equation 9 for text and image in one sequence: (image, text) tokens or all of them."""
    image = len(mask)
    q2, k2, v2 = flux_projections(background, given2)
    _, k1, v1 = flux_projections(foreground, given1)
    text = q2.shape[2] - image
    keys = torch.cat((k2, k1[:, :, -image:]), 2)
    values = torch.cat((v2, v1[:, :, -image:]), 2)
    # Rows are text and image tokens, columns text, own image, guest image.
    allowed = torch.zeros(text + image, text + 2 * image, dtype=torch.bool)
    allowed[:, :text] = True
    allowed[:text, text : text + image] = True
    for row, foreground_row in enumerate(mask):
        own = allowed[text + row, text : text + image]
        guest = allowed[text + row, text + image :]
        own[:] = not foreground_row or not injected
        guest[:] = (mask if foreground_row else ~mask) if injected else False
    out = masked_attention(q2, keys, values, allowed).transpose(1, 2).flatten(2)
    if given2.get("encoder_hidden_states") is None:
        return out
    return linear(background.to_out[0], out[:, text:]), linear(background.to_add_out, out[:, :text])


def assert_sum_is_the_pipelines(pipe, settings, run):
    """The sum is the pipeline's own bit by bit, `settings` repeat themselves, and nothing stays."""
    before = state(pipe)
    plain = run()
    with cross_controlnet(pipe, NOTHING) as control:
        ours = run()
        assert control.error is None
    assert torch.equal(ours, plain)
    with cross_controlnet(pipe, settings) as control:
        first = run()
        assert control.session.injected > 0
        assert torch.equal(run(), first)
    assert torch.isfinite(first).all()
    assert not torch.equal(first, plain)
    assert torch.equal(run(), plain), "something stayed in the pipeline"
    assert state(pipe) == before

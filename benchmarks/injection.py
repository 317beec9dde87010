"""Cost of KV-Injection in one self-attention block, as a ratio to the plain block.

Two comparisons: `region_attention` and equation 9 as written, to one plain attention on bare
tensors; and the hooks, to one plain call of diffusers' `Attention`, projections included.

    python -m benchmarks.injection [--quick] [--device cuda] [--dtype float16]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.command import main
from benchmarks.timing import interleaved, machine, ratio_table
from lib_ccn.regional_attention import region_attention
from lib_ccn.regions import Regions
from lib_ccn.unet_attention import capture_keys_values, inject_keys_values, self_attention_layers

# Tokens and channels of SD 1.5's levels at 512x512; 8 heads.
LEVELS = {256: 1280, 1024: 640, 4096: 320}
FRACTIONS = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)
HEADS = 8
BATCH = 2


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Plain attention on [B, N, C]."""
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)


def as_written(q2: Tensor, k2: Tensor, v2: Tensor, k1: Tensor, v1: Tensor, mask: Tensor) -> Tensor:
    """Equation 9 with masks, every row in both branches."""
    log_f = mask.to(q2.dtype).log()[:, None, None]
    log_b = torch.cat((torch.ones_like(mask), ~mask), 1).to(q2.dtype).log()[:, None, None]
    foreground = attend(q2, k1, v1, log_f.expand(-1, 1, q2.shape[1], -1))
    keys, values = torch.cat((k2, k1), 1), torch.cat((v2, v1), 1)
    background = attend(q2, keys, values, log_b.expand(-1, 1, q2.shape[1], -1))
    return torch.where(mask[..., None], foreground, background)


def sample_mask(tokens: int, fraction: float) -> Tensor:
    """Return a mask [BATCH, tokens] whose rows are equal, as those of the guidance halves are."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    return (order < round(fraction * tokens)).expand(BATCH, -1).contiguous()


def _injected(unit: nn.Module, x: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    layers = self_attention_layers(unit)
    store: dict[int, tuple[Tensor, Tensor]] = {}
    with capture_keys_values(layers, store):
        unit.attn1(x)

    def call() -> Tensor:
        with inject_keys_values(layers, [store], lambda *_: Regions(mask)):
            return unit.attn1(x)

    return call


@torch.no_grad()
def run(quick: bool = False, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Time every token count and foreground fraction.

    Returns {"machine", "dtype", "tokens": {N: {"attention" or "block": {name: {"ms", "ratio"}}}}}
    with names "plain", "formula", "region 0.3", "hooks 0.3"...: medians of interleaved rounds.
    """
    from diffusers.models.attention_processor import Attention

    tokens: dict[int, dict[str, dict[str, dict[str, float]]]] = {}
    place = {"device": device, "dtype": getattr(torch, dtype)}
    for count, channels in LEVELS.items():
        if quick and count > 1024:
            continue
        rounds = 5 if quick or count > 1024 else 15
        torch.manual_seed(0)
        parts = [t.to(**place) for t in torch.randn(5, BATCH, count, channels)]
        unit = nn.Module()
        unit.attn1 = Attention(channels, heads=HEADS, dim_head=channels // HEADS).to(**place)
        x = parts[0]
        masks = {fraction: sample_mask(count, fraction) for fraction in FRACTIONS}
        bare: dict[str, Callable[[], object]] = {
            "plain": functools.partial(attend, *parts[:3]),
            "formula": functools.partial(as_written, *parts, masks[0.3].to(device)),
        }
        block: dict[str, Callable[[], object]] = {"plain": functools.partial(unit.attn1, x)}
        for fraction, mask in masks.items():
            bare[f"region {fraction}"] = functools.partial(region_attention, *parts, mask, HEADS)
            block[f"hooks {fraction}"] = _injected(unit, x, mask)
        tokens[count] = {
            "attention": ratio_table(interleaved(bare, rounds), "plain"),
            "block": ratio_table(interleaved(block, rounds), "plain"),
        }
    return {"machine": machine(device), "dtype": dtype, "tokens": tokens}


def markdown(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| tokens | of | what | ms | ratio to plain |", "|---|---|---|---|---|"]
    for count, tables in result["tokens"].items():
        for of, rows in tables.items():
            for name, row in rows.items():
                lines.append(f"| {count} | {of} | {name} | {row['ms']:.2f} | {row['ratio']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, markdown, __doc__)

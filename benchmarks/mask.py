"""Cost of recording the foreground mask, as a ratio to the layers that it listens to.

A whole transformer block of SD 1.5's quarter resolution at 512x512 and its cross-attention alone,
with both guidance halves; recorded is the conditional one.

    python -m benchmarks.mask [--quick] [--device cuda] [--dtype float16]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.command import main
from benchmarks.timing import interleaved, machine, ratio_table
from lib_ccn.foreground import foreground_mask, word_map, word_scores
from lib_ccn.recorder import CrossAttentionRecorder

LATENT = (64, 64)
TOKENS, CHANNELS, HEADS = 256, 1280, 8
TEXT_TOKENS, TEXT_CHANNELS = 77, 768


class _Word:
    positions = (5, 6)


def _pair(
    layer: Callable[[], Tensor], recorder: CrossAttentionRecorder
) -> dict[str, Callable[[], object]]:
    """Return the layer without and with recording; each registers its hooks or removes them."""

    def plain() -> Tensor:
        recorder.detach()
        return layer()

    def recorded() -> Tensor:
        recorder.attach()
        recorder.begin_call(LATENT, [1])
        return layer()

    return {"plain": plain, "recorded": recorded}


@torch.no_grad()
def run(quick: bool = False, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Time both, and the mask made from the maps once a step.

    Returns {"machine", "dtype", "block", "cross-attention", "mask"}: of the first two
    {"plain" or "recorded": {"ms", "ratio"}}, of the last {"word" or "automatic": {"ms", "ratio"}}
    with the word mask as the base. Medians of interleaved rounds.
    """
    from diffusers.models.attention import BasicTransformerBlock

    place = {"device": device, "dtype": getattr(torch, dtype)}
    torch.manual_seed(0)
    block = BasicTransformerBlock(
        CHANNELS, HEADS, CHANNELS // HEADS, cross_attention_dim=TEXT_CHANNELS
    ).to(**place)
    unet = nn.ModuleDict({"block": block})
    x = torch.randn(2, TOKENS, CHANNELS).to(**place)
    text = torch.randn(2, TEXT_TOKENS, TEXT_CHANNELS).to(**place)
    rounds = 9 if quick else 41

    def measure(layer: Callable[[], Tensor]) -> dict[str, dict[str, float]]:
        recorder = CrossAttentionRecorder(unet)
        seconds = interleaved(_pair(layer, recorder), rounds)
        recorder.detach()
        return ratio_table(seconds, "plain")

    maps = torch.rand(1, TEXT_TOKENS, 16, 16, device=device).softmax(1)
    deviation = torch.rand(1, *LATENT, device=device)
    words = [_Word() for _ in range(10)]
    masks: dict[str, Callable[[], object]] = {
        "word": lambda: foreground_mask(word_map(maps, (5, 6)), 0.5),
        "automatic": lambda: word_scores(maps, words, deviation),
    }
    return {
        "machine": machine(device),
        "dtype": dtype,
        "block": measure(lambda: block(x, encoder_hidden_states=text)),
        "cross-attention": measure(lambda: block.attn2(x, encoder_hidden_states=text)),
        "mask": ratio_table(interleaved(masks, rounds), "word"),
    }


def markdown(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| of | what | ms | ratio |", "|---|---|---|---|"]
    for of in ("block", "cross-attention", "mask"):
        for name, row in result[of].items():
            lines.append(f"| {of} | {name} | {row['ms']:.3f} | {row['ratio']:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, markdown, __doc__)

"""Cost of fusing one ControlNet call's residuals, as a ratio to the host's plain sum.

The 13 residual shapes are those of Stable Diffusion 1.5 at 512x512 with both guidance halves.

    python -m benchmarks.fusion [--quick] [--device cuda] [--dtype float16]
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.command import main
from benchmarks.timing import interleaved, machine, ratio_table
from lib_ccn.fusion import MODES, fuse_residuals
from lib_ccn.rules import Front

Shape = tuple[int, int, int, int]


def residual_shapes(channels: Sequence[int], latent: int, batch: int = 2) -> tuple[Shape, ...]:
    """The residuals of a ControlNet with two blocks at each of its sizes, the middle one last.

    Args:
        channels: of each size, from the widest map to the narrowest.
        latent: the side of the latents.
        batch: rows, both halves of guidance.
    """
    shapes = [(batch, channels[0], latent, latent)]
    for depth, here in enumerate(channels):
        side = latent >> depth
        shapes += [(batch, here, side, side)] * 2
        shapes.append((batch, here, *[side // 2 if depth + 1 < len(channels) else side] * 2))
    return tuple(shapes)


SHAPES = residual_shapes((320, 640, 1280, 1280), 64)
SDXL_SHAPES = residual_shapes((320, 640, 1280), 128)


def sample_units(count: int, device: str, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """Return units of random residuals; neighbours agree in part, so that both branches run."""
    generator = torch.Generator().manual_seed(0)
    common = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [
        [
            (base + torch.randn(base.shape, generator=generator) * 0.6).to(device, dtype)
            for base in common
        ]
        for _ in range(count)
    ]


def sample_front(count: int) -> Front:
    """The first of so many units in front in the left half of the picture, for "layers"."""

    def masks(size: tuple[int, int], device: torch.device) -> torch.Tensor:
        left = torch.arange(size[1], device=device) * 2 < size[1]
        return left.float().expand(1, 1, 1, *size)

    return Front([0, *[None] * (count - 1)], masks)


def run(quick: bool = False, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Time every mode for 2 and 3 units.

    Returns {"machine", "dtype", "units": {N: {mode: {"ms", "ratio"}}}}: medians of interleaved
    rounds, the ratio being to the mode "sum".
    """
    units: dict[int, dict[str, dict[str, float]]] = {}
    for count in (2, 3):
        residuals = sample_units(count, device, getattr(torch, dtype))
        front = sample_front(count)
        functions = {
            mode: functools.partial(fuse_residuals, residuals, mode, front=front) for mode in MODES
        }
        seconds = interleaved(functions, rounds=5 if quick else 25, warmup=1 if quick else 3)
        units[count] = ratio_table(seconds, "sum")
    return {"machine": machine(device), "dtype": dtype, "units": units}


def markdown(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| units | mode | ms | ratio to sum |", "|---|---|---|---|"]
    for count, modes in result["units"].items():
        for mode, row in modes.items():
            lines.append(f"| {count} | {mode} | {row['ms']:.1f} | {row['ratio']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, markdown, __doc__)

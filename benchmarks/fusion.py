"""Cost of fusing one ControlNet call's residuals, as a ratio to the host's plain sum.

The 13 residual shapes are those of Stable Diffusion 1.5 at 512x512 with both guidance halves.

    python -m benchmarks.fusion [--quick] [--device cuda] [--dtype float16]
"""

from __future__ import annotations

import argparse
import functools

import torch

from benchmarks.timing import interleaved, machine, ratio_table
from lib_ccn.fusion import MODES, fuse_residuals

SHAPES = (
    *[(2, 320, 64, 64)] * 3,
    (2, 320, 32, 32),
    *[(2, 640, 32, 32)] * 2,
    (2, 640, 16, 16),
    *[(2, 1280, 16, 16)] * 2,
    *[(2, 1280, 8, 8)] * 3,
    (2, 1280, 8, 8),
)


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


def run(quick: bool = False, device: str = "cpu", dtype: str = "float32") -> dict[str, object]:
    """Time every mode for 2 and 3 units.

    Returns {"machine", "dtype", "units": {N: {mode: {"ms", "ratio"}}}}: medians of interleaved
    rounds, the ratio being to the mode "sum".
    """
    units: dict[int, dict[str, dict[str, float]]] = {}
    for count in (2, 3):
        residuals = sample_units(count, device, getattr(torch, dtype))
        functions = {mode: functools.partial(fuse_residuals, residuals, mode) for mode in MODES}
        seconds = interleaved(functions, rounds=5 if quick else 25, warmup=1 if quick else 3)
        units[count] = ratio_table(seconds, "sum")
    return {"machine": machine(device), "dtype": dtype, "units": units}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Cost of fusion, as a ratio to the plain sum")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--dtype", default="float32", help="float32 (default), float16, ...")
    arguments = parser.parse_args()
    result = run(arguments.quick, arguments.device, arguments.dtype)
    print(f"{result['machine']}, {result['dtype']}, 13 residuals of SD 1.5 at 512x512, batch 2")
    print("| units | mode | ms | ratio to sum |\n|---|---|---|---|")
    assert isinstance(result["units"], dict)
    for count, modes in result["units"].items():
        for mode, row in modes.items():
            print(f"| {count} | {mode} | {row['ms']:.1f} | {row['ratio']:.1f} |")


if __name__ == "__main__":
    main()

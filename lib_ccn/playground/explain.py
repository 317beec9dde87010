"""The command that draws the pictures of `docs/how-it-works.md`: `python3 run.py explain`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..settings import Settings
from .demo_model import ModelError, load_pipeline
from .examples import bundled_examples
from .explain_figures import draw_all
from .options import BUNDLED_MASK_REDUCTION, proportional_start
from .watch import Explanation

OUT = Path("docs/img")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python3 run.py explain", description="Draw the figures of docs/how-it-works.md."
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder (default: {OUT})")
    parser.add_argument("--steps", type=int, default=20, help="of UniPC (default: 20)")
    parser.add_argument(
        "--example", type=int, default=0, help="which of the demo's, from 0 (default: 0)"
    )
    given = parser.parse_args(argv)
    if given.steps < 4:
        parser.error(f"--steps: {given.steps} is less than 4")
    return given


def run(given: argparse.Namespace) -> int:
    """Draw every figure; returns the exit status."""
    examples = bundled_examples()
    if not 0 <= given.example < len(examples):
        print(f"error: --example: {given.example} is not 0 to {len(examples) - 1}", file=sys.stderr)
        return 2
    example = examples[given.example]
    settings = Settings(
        foreground_word=example.word,
        start_step=proportional_start(given.steps),
        mask_reduction=BUNDLED_MASK_REDUCTION,
        strict=True,
    )
    try:
        pipe = load_pipeline()
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    work = Explanation(pipe, example, given.steps, given.steps // 4, settings)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, figure in draw_all(work).items():
        path = given.out / name
        figure.quantize(128).save(path, optimize=True)
        print(f"{path}  ({path.stat().st_size // 1024} KiB)")
    return 0

"""The command that draws the pictures of `docs/how-it-works.md`: `python3 run.py explain`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib_ccn.settings import Settings

from .command_line import STEP_LIMIT, OutputError, Parser, prepare_folder, whole
from .demo_model import ModelError, load_pipeline
from .examples import SCENES, bundled_examples
from .explain_figures import draw_all
from .options import BUNDLED_MASK_REDUCTION
from .watch import Explanation

OUT = Path("docs/img")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        prog="python3 run.py explain",
        description="Draw the figures of docs/how-it-works.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder (default: {OUT})")
    parser.add_argument(
        "--steps", type=whole(4, STEP_LIMIT), default=20, help="of UniPC (default: 20)"
    )
    last = len(SCENES) - 1
    parser.add_argument(
        "--example",
        type=whole(0, last),
        default=0,
        help=f"which of the demo's, 0 to {last} (default: 0)",
    )
    return parser.parse_args(argv)


def run(given: argparse.Namespace) -> int:
    """Draw every figure; returns the exit status."""
    example = bundled_examples()[given.example]
    settings = Settings(
        foreground_word=example.word,
        mask_reduction=BUNDLED_MASK_REDUCTION,
        strict=True,
    ).at_steps(given.steps)
    try:
        prepare_folder("--out", given.out)
        pipe = load_pipeline()
    except (OutputError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OutputError) else 1
    work = Explanation(pipe, example, given.steps, given.steps // 4, settings)
    for name, figure in draw_all(work).items():
        path = given.out / name
        figure.quantize(128).save(path, optimize=True)
        print(f"{path}  ({path.stat().st_size // 1024} KiB)")
    return 0

"""The fidelity benchmark's options, and what they mean for a run."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo.command_line import GUIDANCE_LIMIT, STEP_LIMIT, Parser, number, whole
from demo.options import BUNDLED_GUIDANCE, BUNDLED_MASK_REDUCTION, GUIDANCE
from lib_ccn.settings import Settings

from .folder import pairs_digest
from .models import weights_digest
from .pairs import CASES
from .runner import Sampling

COUNT_LIMIT = 10**6
FULL_PAIRS, QUICK_PAIRS, ABLATED = 500, 20, 120
STEPS, REAL_STEPS = 10, 50

EPILOG = """\
examples:
  python3 run.py bench fidelity --quick            # minutes
  python3 run.py bench fidelity --processes 2      # the full set, under an hour on two cores
  python3 run.py bench fidelity --methods sum pix+channel full --cases conflict --count 40
  python3 run.py bench fidelity --write            # benchmarks/FIDELITY.md and docs/img from it
  python3 run.py bench fidelity --model path/or/hub-id --controlnet openpose --controlnet depth \\
      --pairs my-pairs --device cuda --clip openai/clip-vit-large-patch14 --niqe

On several GPUs or machines, with accelerate's own options (`accelerate launch --help`):
  accelerate launch --multi_gpu --num_processes 8 -m benchmarks fidelity --model ... --pairs ...

A folder of pairs has a pairs.json, a list of entries such as
  {"prompt": "a dancer in a forest", "word": "dancer", "case": "conflict",
   "foreground": "001-pose.png", "background": "001-depth.png",
   "object_mask": "001-mask.png", "labels": "001-classes.png", "reference": "001.jpg"}
of which prompt, foreground and background are needed."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = Parser(
        prog="python3 run.py bench fidelity",
        description="Pictures of conflicting and complementary condition pairs under every rule "
        "of fusion, measured against what was asked for. A run that is broken off goes on where "
        "it was, with as many processes as then.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _how_much(parser.add_argument_group("how much"))
    _how(parser.add_argument_group("how"))
    _own(parser.add_argument_group("your own model and pairs"))
    out = parser.add_argument_group("results")
    out.add_argument(
        "--out", type=Path, help="folder (runs/fidelity; --quick: runs/fidelity-quick)"
    )
    out.add_argument("--fresh", action="store_true", help="throw away what is in the folder")
    out.add_argument(
        "--report", action="store_true", help="no new pictures: the tables of what is there"
    )
    out.add_argument(
        "--write", action="store_true", help="write benchmarks/FIDELITY.md and its figures"
    )
    return parser


def _how_much(size: Any) -> None:
    size.add_argument(
        "--quick", action="store_true", help=f"{QUICK_PAIRS} pairs of each case, no ablations"
    )
    size.add_argument(
        "--count",
        type=whole(1, COUNT_LIMIT),
        metavar="N",
        help=f"pairs of each case ({FULL_PAIRS})",
    )
    size.add_argument(
        "--ablated",
        type=whole(0, COUNT_LIMIT),
        metavar="N",
        help=f"of these in the ablations ({ABLATED}; 0 none; with --methods none)",
    )
    size.add_argument(
        "--methods", nargs="+", metavar="KEY", help="these alone, by their names in the results"
    )
    size.add_argument("--cases", nargs="+", choices=CASES, help="these alone (all)")
    size.add_argument(
        "--coupled",
        action="store_true",
        help="the authors' coupled encoders and unpacked halves for every pair, not in the "
        "ablations alone",
    )
    size.add_argument(
        "--minutes", type=number(0, 1e6), help="stop after so long; a later run goes on"
    )
    size.add_argument(
        "--layers", action="store_true", help="look into the layers too: keys, values, winners"
    )


def _how(how: Any) -> None:
    how.add_argument(
        "--steps", type=whole(1, STEP_LIMIT), help=f"of UniPC ({STEPS}; your model: {REAL_STEPS})"
    )
    how.add_argument("--guidance-scale", type=number(0, GUIDANCE_LIMIT), metavar="CFG")
    how.add_argument(
        "--batch", type=whole(1, COUNT_LIMIT), default=24, help="pictures per call (24)"
    )
    how.add_argument(
        "--device", help="cpu, cuda, mps (cpu; under `accelerate launch` the machine's GPUs)"
    )
    how.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the networks (float32 on a CPU, float16 elsewhere; the bundled model on a CPU: "
        "bfloat16 autocast, as it was trained)",
    )
    how.add_argument(
        "--processes",
        type=whole(1, 256),
        default=1,
        help="start so many by `accelerate launch`, one per core or GPU of this machine (1)",
    )


def _own(model: Any) -> None:
    model.add_argument("--model", metavar="DIR|HUBID", help="Stable Diffusion 1.5 or SDXL")
    model.add_argument(
        "--controlnet", action="append", metavar="DIR|HUBID", help="twice: foreground, background"
    )
    model.add_argument("--pairs", type=Path, metavar="FOLDER", help="see below")
    model.add_argument("--clip", metavar="DIR|HUBID", help="CLIP model for the CLIP-score")
    model.add_argument(
        "--segmenter", metavar="DIR|HUBID", help="segmentation model for IoU and region accuracy"
    )
    model.add_argument(
        "--object-label", default="person", help="the segmenter's class of the object (person)"
    )
    model.add_argument(
        "--depth", metavar="DIR|HUBID", help="depth model: MSE to the background condition"
    )
    model.add_argument("--niqe", action="store_true", help="NIQE; needs the package pyiqa")


def sampling_of(given: argparse.Namespace, device: str | None = None) -> Sampling:
    """How the options want pictures to be made, on this device or the one they name."""
    bundled = given.model is None
    guidance = BUNDLED_GUIDANCE if bundled else GUIDANCE
    return Sampling(
        steps=given.steps or (STEPS if bundled else REAL_STEPS),
        guidance_scale=guidance if given.guidance_scale is None else given.guidance_scale,
        mask_reduction=BUNDLED_MASK_REDUCTION if bundled else Settings().mask_reduction,
        bfloat16=bundled and _precision(given, device) == "bfloat16",
    )


def weights_dtype(given: argparse.Namespace, device: str | None = None) -> str:
    """The name of the weights' dtype; autocast needs them in float32."""
    return "float32" if sampling_of(given, device).bfloat16 else _precision(given, device)


def _precision(given: argparse.Namespace, device: str | None) -> str:
    if given.dtype is not None:
        return str(given.dtype)
    if not (device or given.device or "cpu").startswith("cpu"):
        return "float16"
    return "bfloat16" if given.model is None else "float32"


def description(
    given: argparse.Namespace, sampling: Sampling, device: str | None = None
) -> dict[str, Any]:
    """What rows must have in common to belong to one run; no row depends on its batch.

    Raises:
        PairsError: the folder of pairs has no `pairs.json`.
    """
    return {
        "model": given.model or "the bundled demo model",
        "weights": weights_digest() if given.model is None else None,
        "controlnets": given.controlnet,
        "dtype": _precision(given, device),
        "pairs": None if given.pairs is None else str(given.pairs),
        "pairs_sha256": None if given.pairs is None else pairs_digest(given.pairs),
        "scorers": [given.clip, given.segmenter, given.object_label, given.depth, given.niqe],
        **asdict(sampling),
    }

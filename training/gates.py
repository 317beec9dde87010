"""The demo model's quality gates on held-out scenes: `python -m training.gates`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from demo.command_line import (
    GUIDANCE_LIMIT,
    STEP_LIMIT,
    OutputError,
    Parser,
    check_picture_name,
    interruptible,
    leave,
    number,
    prepare_file,
    silence_libraries,
    whole,
)
from demo.options import BUNDLED_MASK_REDUCTION

SCENE_SEED = 20_260_101  # the trainer's scenes come from the seeds 0, 7919, 15838, ...
SCENE_LIMIT = 65_536
SCENES, STEPS = 256, 20
QUICK_SCENES, QUICK_STEPS = 32, 10
SHEET_PICTURES = 8
METHODS = {
    "sum": {"fusion": "sum"},
    "mean": {"fusion": "mean"},
    "max": {"fusion": "max"},
    "pix": {"fusion": "pix"},
    "pix+channel": {"fusion": "pix+channel"},
    "full, word mask": {"inject": True, "mask_reduction": BUNDLED_MASK_REDUCTION},
    "full, quarter-resolution mask": {"inject": True},
    "full, silhouette": {"inject": True, "mask_source": "silhouette"},
}
AGREEING = {
    "sum": {"fusion": "sum"},
    "pix+channel, delta 0": {"delta": 0.0},
    "pix+channel, delta 0.7": {"delta": 0.7},
    "pix+channel, delta 1": {"delta": 1.0},
}


@dataclass(frozen=True)
class Kind:
    """One row of the table: which conditions, which method, and the gates it must pass."""

    name: str
    conditions: tuple[str, ...] = ()
    settings: dict[str, Any] | None = None
    gates: dict[str, float] = field(default_factory=dict)
    two: bool = False  # objects in every scene


KINDS = (
    Kind("caption alone", gates={"colour": 0.95, "regions": 0.90, "shape": 0.80, "fit": 0.80}),
    Kind("outline alone", ("outline",), gates={"iou": 0.90}),
    Kind("region map with the object", ("region_map",), gates={"iou": 0.90, "accuracy": 0.97}),
    Kind("region map without the object", ("landscape_map",), gates={"accuracy": 0.96}),
    Kind("two objects: caption alone", gates={"kept": 0.90}, two=True),
    Kind("two objects: both outlines", ("outline",), gates={"kept": 0.90}, two=True),
    Kind("two objects: region map", ("region_map",), two=True),
    *(Kind(f"conflict: {n}", ("outline", "landscape_map"), s) for n, s in METHODS.items()),
    *(Kind(f"agreeing: {n}", ("outline", "region_map"), s) for n, s in AGREEING.items()),
)
HEADS = {"iou": "object IoU", "accuracy": "region accuracy", "colour": "colour right"}
HEADS |= {"regions": "named regions present", "mask": "mask IoU"}
HEADS |= {"shape": "worst shape recognised", "fit": "worst shape's fit", "kept": "colours kept"}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as a Markdown table, gates marked."""
    lines = [
        "| condition | " + " | ".join(HEADS.values()) + " |",
        "|---" * (len(HEADS) + 1) + "|",
    ]
    gates = {kind.name: kind.gates for kind in KINDS}
    for name, values in rows.items():
        cells = []
        for key in HEADS:
            value, gate = values.get(key), gates.get(name, {}).get(key)
            cell = "" if value is None else f"{value:.3f}"
            if value is not None and gate is not None:
                cell += f" **{'pass' if value >= gate else 'FAIL'}** (>= {gate:g})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; leaves with status 2 and a message where it is wrong."""
    parser = Parser(
        prog="python3 run.py gates",
        description="Measure the demo model on held-out scenes.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", default=None, help="default: the bundled one, models/demo")
    parser.add_argument("--scenes", type=whole(1, SCENE_LIMIT), help=f"default: {SCENES}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_SCENES} scenes, {QUICK_STEPS} steps, and only the rows that have a gate",
    )
    parser.add_argument(
        "--only", default="", help="only rows whose name has one of these in it, comma-separated"
    )
    parser.add_argument("--steps", type=whole(1, STEP_LIMIT), help=f"default: {STEPS}")
    parser.add_argument("--guidance-scale", type=number(0, GUIDANCE_LIMIT), default=3.0)
    parser.add_argument("--sampler", choices=("unipc", "ddim"), default="unipc")
    parser.add_argument("--batch", type=whole(1, SCENE_LIMIT), default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    given = parser.parse_args(argv)
    given.scenes = given.scenes or (QUICK_SCENES if given.quick else SCENES)
    given.steps = given.steps or (QUICK_STEPS if given.quick else STEPS)
    if not chosen(given):
        parser.error(f"--only: {given.only!r} is in no row's name")
    try:
        if given.sheet is not None:
            check_picture_name("--sheet", given.sheet)
    except OutputError as error:
        parser.error(str(error))
    return given


def chosen(given: argparse.Namespace) -> list[Kind]:
    """The rows that the options ask for; with `--quick`, and none named, those with a gate."""
    if given.quick and not given.only:
        return [kind for kind in KINDS if kind.gates]
    wanted = given.only.split(",")
    return [kind for kind in KINDS if any(part in kind.name for part in wanted)]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 1 if a gate fails."""
    return interruptible(lambda: run(parse(argv)))


def run(given: argparse.Namespace) -> int:
    """Make and measure the pictures; returns the exit status."""
    silence_libraries()  # before what follows imports their pipelines
    import torch
    from diffusers import DDIMScheduler, UniPCMultistepScheduler
    from tqdm import tqdm

    from demo.demo_model import ModelError, load_pipeline
    from demo.scenes import draw, draw_two
    from training.measure import Bench, differences

    began = time.monotonic()
    try:
        for option in ("json", "sheet"):
            if getattr(given, option) is not None:
                prepare_file(f"--{option}", getattr(given, option))
        pipe = load_pipeline(given.model, device=given.device, dtype=torch.float32, several=True)
    except (OutputError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sampler = DDIMScheduler if given.sampler == "ddim" else UniPCMultistepScheduler
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    scenes = draw(given.scenes, torch.Generator().manual_seed(SCENE_SEED), object_free=0)
    both = draw_two(given.scenes, torch.Generator().manual_seed(SCENE_SEED))
    one, two = (
        Bench(pipe, s, given.steps, given.guidance_scale, given.batch) for s in (scenes, both)
    )
    kinds = chosen(given)
    pictures = {"scenes as drawn": scenes.picture, "through the VAE": one.through_vae()}
    rows = {name: one.score(picture) for name, picture in pictures.items()}
    rows["two objects as drawn"] = two.score(both.picture)
    with tqdm(total=len(kinds) * given.scenes * given.steps, unit="step") as bar:
        for kind in kinds:
            bar.set_description(kind.name)
            bench = two if kind.two else one
            rows[kind.name], pictures[kind.name] = bench.measure(kind, bar)
            if given.json:  # a run that is broken off leaves what it has measured
                done = [k for k in kinds if k.name in rows]
                _write_json(given, rows, differences(pictures), _failed(done, rows))
    seconds = time.monotonic() - began
    apart = differences(pictures)
    failed = _failed(kinds, rows)
    _print(given, rows, apart, failed, seconds)
    if given.sheet:
        from demo.figures import contact_sheet

        shown = {"outline": scenes.outline, "region map": scenes.region_map} | pictures
        contact_sheet([(n, p[:SHEET_PICTURES]) for n, p in shown.items()]).save(given.sheet)
    return 1 if failed else 0


def _failed(kinds: list[Kind], rows: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"{kind.name}: {HEADS[key]}"
        for kind in kinds
        for key, gate in kind.gates.items()
        if not rows[kind.name][key] >= gate
    ]


def _print(
    given: argparse.Namespace,
    rows: dict[str, dict[str, float]],
    apart: dict[str, float],
    failed: list[str],
    seconds: float,
) -> None:
    print(table(rows))
    for name, value in apart.items():
        print(f"mean difference, {name}: {value:.2f} of 255")
    print(f"{given.scenes} scenes, {given.steps} {given.sampler} steps, CFG", end=" ")
    print(f"{given.guidance_scale:g}, {seconds:.0f} s")
    print("all gates passed" if not failed else "FAILED: " + "; ".join(failed))


def _write_json(
    given: argparse.Namespace,
    rows: dict[str, dict[str, float]],
    apart: dict[str, float],
    failed: list[str],
) -> None:
    how = {k: str(v) for k, v in vars(given).items() if k not in ("json", "sheet")}
    gates = {kind.name: asdict(kind)["gates"] for kind in chosen(given) if kind.gates}
    report = {"how": how | {"scenes": given.scenes}, "rows": rows, "gates": gates}
    report |= {"differences": apart, "failed": failed}
    given.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    leave(main())

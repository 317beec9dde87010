"""Condition pairs from folders of photographs: `python3 run.py bench prepare`.

A person of one photograph (COCO) and the landscape of another (BG-20K) make a conflicting pair;
both conditions of one photograph make a complementary one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from demo.command_line import OutputError, Parser, number, prepare_folder, whole

from . import detectors as seeing
from .detectors import DetectorError, Detectors
from .folder import PAIRS, PairsError
from .photographs import PICTURES, Wanted, look
from .processes import ProcessError, Processes, launch, launched
from .store import StoreError, same_run

ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
PARTS, NOTE = "parts", "prepare.json"
EPILOG = """\
example:
  python3 run.py bench prepare --coco coco/val2017 --bg20k BG-20k/testval --out pairs --device cuda
  python3 run.py bench fidelity --pairs pairs/pose+seg --model ... --controlnet openpose \\
      --controlnet seg --clip openai/clip-vit-large-patch14 --segmenter {segmenter}

It needs `pip install controlnet_aux` and the models' weights. Run again, it goes on where it was;
`--processes N`, or `accelerate launch --multi_gpu --num_processes N -m benchmarks prepare ...`, shares
the work among GPUs that write to one disk."""  # noqa: E501


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = Parser(
        prog="python3 run.py bench prepare",
        description="Condition pairs for `bench fidelity` from your own COCO and BG-20K folders.",
        epilog=EPILOG.format(segmenter=seeing.SEGMENTER),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--coco", type=Path, required=True, help="folder of photographs of persons")
    parser.add_argument("--bg20k", type=Path, required=True, help="folder of landscapes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pairs")
    parser.add_argument("--count", type=whole(1, 10**6), default=2000, help="pairs (2000)")
    parser.add_argument(
        "--conditions",
        nargs="+",
        default=["pose+seg", "pose+depth"],
        metavar="A+B",
        help=f"kinds, the foreground's first, of {', '.join(seeing.KINDS)} (pose+seg pose+depth)",
    )
    parser.add_argument(
        "--complementary", action="store_true", help="both conditions of one photograph, too"
    )
    parser.add_argument("--size", type=whole(16, 4096), default=512, help="side in pixels (512)")
    parser.add_argument("--seed", type=whole(0, 2**32), default=0, help="of the photographs' order")
    parser.add_argument(
        "--least", type=number(0, 1), default=0.02, help="share of the object at least (0.02)"
    )
    parser.add_argument("--most", type=number(0, 1), default=0.6, help="and at most (0.6)")
    parser.add_argument("--object-label", default="person", help="the segmenter's class (person)")
    parser.add_argument("--device", help="cpu, cuda (cpu; under `accelerate launch` the GPUs)")
    parser.add_argument("--processes", type=whole(1, 256), default=1, help="see below (1)")
    models = parser.add_argument_group("models")
    models.add_argument("--annotators", default=seeing.ANNOTATORS, help=f"({seeing.ANNOTATORS})")
    models.add_argument("--segmenter", default=seeing.SEGMENTER, help=f"({seeing.SEGMENTER})")
    models.add_argument("--captioner", default=seeing.CAPTIONER, help=f"({seeing.CAPTIONER})")
    models.add_argument(
        "--detectors", metavar="MODULE:FUNCTION", help="your own, in place of all of these"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    given = parser.parse_args(words)
    for pair in given.conditions:
        kinds = pair.split("+")
        if len(kinds) != 2 or any(kind not in seeing.KINDS for kind in kinds):
            known = ", ".join(seeing.KINDS)
            parser.error(f"--conditions: {pair!r} is refused: expected two of {known}, as in a+b")
    try:
        if given.processes > 1 and not launched():
            return launch(given.processes, ["benchmarks", "prepare", *words])
        return run(given)
    except (PairsError, DetectorError, StoreError, OutputError, ProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OutputError) else 1


def run(given: argparse.Namespace) -> int:
    """Make this process's share of the pairs; the first process writes the lists of them."""
    processes = Processes(given.device)
    wanted = Wanted(
        tuple(dict.fromkeys(given.conditions)),
        *(given.size, given.least, given.most, given.complementary, given.object_label),
    )
    persons = photographs(given.coco, given.seed, "--coco")
    places = photographs(given.bg20k, given.seed, "--bg20k")
    for folder in (PICTURES, PARTS):
        prepare_folder("--out", given.out / folder)
    if processes.is_first:
        how = {
            k: str(v) for k, v in vars(given).items() if k not in ("count", "processes", "device")
        }
        same_run(given.out, NOTE, how, any((given.out / PARTS).iterdir()), "name another --out")
    processes.wait()
    kinds = sorted({kind for pair in wanted.conditions for kind in pair.split("+")})
    found = (
        seeing.own(given.detectors)
        if given.detectors
        else seeing.public(
            kinds,
            processes.device,
            given.object_label,
            given.annotators,
            given.segmenter,
            given.captioner,
        )
    )
    make(given.out, persons, places, wanted, found, given.count, processes)
    processes.close()
    if processes.is_first:
        done = write_lists(given.out, wanted, given.count)
        for path, count in done.items():
            print(f"{path}: {count} pairs")
        if min(done.values()) < given.count:
            print(f"fewer than {given.count}: {given.coco} has no more that will do")
    return 0


def photographs(folder: Path, seed: int, option: str) -> list[Path]:
    """The pictures in a folder and below, in an order that depends on the seed alone.

    Raises:
        PairsError: there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise PairsError(f"{option}: {folder} has no pictures ({', '.join(sorted(ENDINGS))})")
    random.Random(seed).shuffle(found)
    return found


def make(
    out: Path,
    persons: Sequence[Path],
    places: Sequence[Path],
    wanted: Wanted,
    detectors: Detectors,
    count: int,
    processes: Processes,
) -> None:
    """Look at photographs until this process has its share of `count` pairs; goes on after a break.

    A photograph is done once its part is written, which tells its pairs or why it has none.
    """
    known = read_parts(out)
    missing = max(0, count - sum(bool(part["pairs"]) for part in known.values()))
    processes.wait()  # nobody adds a part before all have counted
    share = missing // processes.count + (processes.index < missing % processes.count)
    made = 0
    with tqdm(total=share, unit="pair", disable=None if processes.is_first else True) as bar:
        for number in range(processes.index, len(persons), processes.count):
            if made == share:
                break
            if number in known:
                continue
            place = places[number % len(places)]
            part = look(out, number, persons[number], place, wanted, detectors)
            path = out / PARTS / f"{number:06d}.json"
            new = path.with_suffix(".new")
            new.write_text(json.dumps(part, indent=1) + "\n", "utf-8")
            os.replace(new, path)
            made += bool(part["pairs"])
            bar.update(bool(part["pairs"]))


def read_parts(out: Path) -> dict[int, dict[str, Any]]:
    """What is known of every photograph that was looked at, by its number."""
    return {
        int(path.stem): json.loads(path.read_text("utf-8"))
        for path in sorted((out / PARTS).glob("*.json"))
    }


def write_lists(out: Path, wanted: Wanted, count: int) -> dict[Path, int]:
    """Write `pairs.json` of every kind; returns how many photographs each is made from."""
    parts = [part["pairs"] for _, part in sorted(read_parts(out).items()) if part["pairs"]]
    done = {}
    for pair in wanted.conditions:
        path = out / pair / PAIRS
        path.parent.mkdir(exist_ok=True)
        entries = [entry for part in parts[:count] for entry in part[pair]]
        path.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
        done[path] = len(parts[:count])
    return done

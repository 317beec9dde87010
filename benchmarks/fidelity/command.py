"""The fidelity benchmark's command line: `python3 run.py bench fidelity`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from demo.command_line import (
    GUIDANCE_LIMIT,
    STEP_LIMIT,
    OutputError,
    Parser,
    number,
    prepare_folder,
    whole,
    without_interrupts,
)
from demo.demo_model import ModelError, native_size
from demo.options import (
    BUNDLED_GUIDANCE,
    BUNDLED_MASK_REDUCTION,
    GUIDANCE,
)
from lib_ccn.attention import self_attention_layers
from lib_ccn.settings import Settings

from . import report
from .authors import supports
from .folder import FolderPairs, PairsError, pairs_digest
from .methods import COUPLED, MAIN, Ablation, Method, ablations
from .models import load, weights_digest
from .pairs import DrawnPairs, Source
from .runner import Job, RunError, Sampling, Worker, is_done, jobs
from .scorers import ScorerError, Scorers
from .store import Row, Store, StoreError

COUNT_LIMIT = 10**6
FULL_PAIRS, QUICK_PAIRS, ABLATED = 500, 20, 120
STEPS, REAL_STEPS = 10, 50

EPILOG = """\
examples:
  python3 run.py bench fidelity --quick            # minutes
  python3 run.py bench fidelity --processes 2      # the full set, under an hour on two cores
  python3 run.py bench fidelity --write            # benchmarks/FIDELITY.md and docs/img from it
  python3 run.py bench fidelity --model path/or/hub-id --controlnet openpose --controlnet depth \\
      --pairs my-pairs --device cuda --clip openai/clip-vit-large-patch14 --niqe

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
        "it was.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    size = parser.add_argument_group("how much")
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
        help=f"of these in the ablations ({ABLATED}; 0 none)",
    )
    size.add_argument(
        "--coupled",
        action="store_true",
        help="the authors' coupled encoders for every pair, not in the ablations alone",
    )
    size.add_argument(
        "--minutes", type=number(0, 1e6), help="stop after so long; a later run goes on"
    )
    size.add_argument(
        "--layers", action="store_true", help="look into the layers too: keys, values, winners"
    )

    how = parser.add_argument_group("how")
    how.add_argument(
        "--steps", type=whole(1, STEP_LIMIT), help=f"of UniPC ({STEPS}; your model: {REAL_STEPS})"
    )
    how.add_argument("--guidance-scale", type=number(0, GUIDANCE_LIMIT), metavar="CFG")
    how.add_argument(
        "--batch", type=whole(1, COUNT_LIMIT), default=24, help="pictures per call (24)"
    )
    how.add_argument("--device", default="cpu", help="cpu, cuda, mps (cpu)")
    how.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the networks: bfloat16 is autocast (default on a CPU with the bundled model: "
        "bfloat16, as it was trained; otherwise the model's own)",
    )
    how.add_argument(
        "--processes",
        type=whole(1, 256),
        default=1,
        help="of one thread each; on a CPU, one per core (1)",
    )

    model = parser.add_argument_group("your own model and pairs")
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


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = build_parser()
    given = parser.parse_args(argv)
    if given.layers and given.pairs is not None:
        parser.error("--layers: needs the pictures of the drawn pairs, not --pairs")
    if given.model is not None and given.pairs is None:
        parser.error("--pairs: your own model needs a folder of its own pairs")
    if given.write and (given.quick or given.model is not None or given.pairs is not None):
        parser.error(
            "--write: the page is about the bundled model's full set, not --quick, --model or "
            "--pairs"
        )
    try:
        return run(given)
    except (ModelError, PairsError, StoreError, RunError, ScorerError, OutputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OutputError) else 1


def sampling_of(given: argparse.Namespace) -> Sampling:
    """How the options want pictures to be made."""
    bundled = given.model is None
    guidance = BUNDLED_GUIDANCE if bundled else GUIDANCE
    return Sampling(
        steps=given.steps or (STEPS if bundled else REAL_STEPS),
        guidance_scale=guidance if given.guidance_scale is None else given.guidance_scale,
        mask_reduction=BUNDLED_MASK_REDUCTION if bundled else Settings().mask_reduction,
        bfloat16=given.dtype == "bfloat16"
        or (given.dtype is None and bundled and given.device == "cpu"),
    )


def description(given: argparse.Namespace, sampling: Sampling) -> dict[str, Any]:
    """What rows must have in common to belong to one run; no row depends on its batch.

    Raises:
        PairsError: the folder of pairs has no `pairs.json`.
    """
    return {
        "model": given.model or "the bundled demo model",
        "weights": weights_digest() if given.model is None else None,
        "controlnets": given.controlnet,
        "dtype": given.dtype,
        "pairs": None if given.pairs is None else str(given.pairs),
        "pairs_sha256": None if given.pairs is None else pairs_digest(given.pairs),
        "scorers": [given.clip, given.segmenter, given.object_label, given.depth, given.niqe],
        **asdict(sampling),
    }


def run(given: argparse.Namespace) -> int:
    """What the options ask for."""
    sampling = sampling_of(given)
    count = given.count or (QUICK_PAIRS if given.quick else FULL_PAIRS)
    ablated = given.ablated if given.ablated is not None else (0 if given.quick else ABLATED)
    folder = given.out or Path("runs/fidelity-quick" if given.quick else "runs/fidelity")
    prepare_folder("--out", folder)
    store = Store(folder, description(given, sampling), given.fresh)
    prepare = partial(_worker, given, sampling)
    worker = prepare()
    if given.coupled and not supports(worker.pipe):
        raise RunError("--coupled: needs two ControlNets of Stable Diffusion 1.5's kind")
    variants = _variants(worker) if ablated else []
    methods: list[Method] = [*MAIN, COUPLED] if given.coupled else list(MAIN)
    everything = jobs(worker.source, count, ablated, variants, given.batch, methods)
    if not given.report:
        due = [job for job in everything if not is_done(job, store)]
        finished = work(due, store, worker, prepare, given.processes, given.minutes)
        if not finished:
            print(f"stopped after {given.minutes:g} minutes; the same command goes on")
    text = report.markdown(store, worker.source, methods, variants, sampling)
    if given.layers:
        from . import layers as inside

        text += "\n" + inside.markdown(
            {case: inside.look(worker, given.batch, case) for case in worker.source.cases}
        )
    print(text)
    if given.write:
        for path in report.write(text, store, worker.source, methods, variants):
            print(path)
    return 0


def _variants(worker: Worker) -> list[Ablation]:
    """The ablations that the worker's ControlNets allow."""
    nets, sampling = worker.pipe.controlnet.nets, worker.sampling
    layers = 1 + max((layer.layer for layer in self_attention_layers(nets[1])), default=0)
    everything = ablations(sampling.steps, layers, sampling.mask_reduction)
    if supports(worker.pipe):
        return everything
    return [a for a in everything if all(method.rule is None for _, method in a.methods)]


def work(
    due: list[Job],
    store: Store,
    worker: Worker,
    prepare: Any,
    processes: int,
    minutes: float | None,
) -> bool:
    """Do the jobs and keep their rows; returns False if the time was up first."""
    began = time.monotonic()
    pictures = sum(len(job.plan.ids) for job in due if job.method is not None)
    with tqdm(total=pictures, unit="picture", disable=None if pictures else True) as bar:
        done = _in_processes(due, prepare, processes) if processes > 1 else _here(due, worker)
        for job, rows in done:
            for key, scores in rows.items():
                store.add(job.plan.case, key, dict(zip(job.plan.ids, scores, strict=True)))
            if job.method is not None:
                bar.set_description(job.method.key)
                bar.update(len(job.plan.ids))
            if minutes is not None and time.monotonic() - began > minutes * 60:
                return False
    return True


Done = tuple[Job, dict[str, list[Row]]]


def _here(due: Iterable[Job], worker: Worker) -> Iterator[Done]:
    for job in due:
        yield job, worker.run(job)


def _in_processes(due: list[Job], prepare: Any, processes: int) -> Iterator[Done]:
    context = torch.multiprocessing.get_context("spawn")
    with without_interrupts():
        pool = context.Pool(processes, _prepare_process, (prepare,))
    with pool:
        yield from pool.imap_unordered(_run_in_process, due)


def _prepare_process(prepare: Any) -> None:
    torch.set_num_threads(1)
    # A function that a pool calls finds its worker nowhere else.
    _run_in_process.worker = prepare()  # type: ignore[attr-defined]


def _run_in_process(job: Job) -> Done:
    return job, _run_in_process.worker.run(job)  # type: ignore[attr-defined]


def _worker(given: argparse.Namespace, sampling: Sampling) -> Worker:
    pipe = load(given.model, given.controlnet, given.device, given.dtype)
    source: Source = DrawnPairs()
    if given.pairs is not None:
        scorers = Scorers.load(
            given.clip,
            given.segmenter,
            given.object_label,
            given.depth,
            given.niqe,
            given.device,
        )
        side = native_size(pipe)
        source = FolderPairs(given.pairs, (side, side), scorers)
    return Worker(pipe, source, sampling)

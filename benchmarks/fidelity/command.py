"""The fidelity benchmark's command line: `python3 run.py bench fidelity`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from demo.command_line import OutputError, prepare_folder
from demo.demo_model import ModelError, native_size
from lib_ccn.unet_attention import self_attention_layers

from . import report
from .authors import supports
from .folder import FolderPairs, PairsError
from .methods import COUPLED, MAIN, UNPACKED, Ablation, Method, ablations
from .models import load
from .options import (
    ABLATED,
    FULL_PAIRS,
    QUICK_PAIRS,
    build_parser,
    description,
    sampling_of,
    weights_dtype,
)
from .pairs import CONFLICT, SEVERAL, DrawnPairs, Source
from .processes import ProcessError, Processes, launch, launched
from .runner import Job, RunError, Sampling, Worker, is_done, jobs, share
from .scorers import ScorerError, Scorers
from .store import Store, StoreError

ERRORS = (ModelError, PairsError, StoreError, RunError, ScorerError, OutputError, ProcessError)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    given = parser.parse_args(words)
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
        if given.processes > 1 and not launched():
            return launch(given.processes, ["benchmarks.fidelity", *words])
        return run(given)
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OutputError) else 1


def run(given: argparse.Namespace) -> int:
    """What the options ask for, or this process's share of it."""
    processes = Processes(given.device)
    sampling = sampling_of(given, processes.device)
    folder = given.out or Path("runs/fidelity-quick" if given.quick else "runs/fidelity")
    prepare_folder("--out", folder)
    how = description(given, sampling, processes.device)
    store = Store(folder, how, given.fresh, processes)
    worker = prepare(given, sampling, processes.device)
    source = worker.source
    count = given.count or (QUICK_PAIRS if given.quick else FULL_PAIRS)
    if given.coupled and not supports(worker.pipe):
        raise RunError("--coupled: needs two ControlNets of Stable Diffusion 1.5's kind")
    variants = _variants(worker)
    methods = _methods(given, variants)
    ablated = 0 if given.quick or given.methods else ABLATED
    ablated = ablated if given.ablated is None else given.ablated
    variants = variants if ablated else []
    if not given.report:
        everything = jobs(source, count, ablated, variants, given.batch, methods)
        due = share([job for job in everything if not is_done(job, store)], processes)
        if not work(due, store, worker, given.minutes):
            print(f"stopped after {given.minutes:g} minutes; the same command goes on")
        store.merge()
    processes.close()
    if processes.is_first:
        text = report.markdown(store, source, methods, variants, sampling)
        if given.layers:
            text += "\n" + _inside(worker, given.batch)
        print(text)
        if given.write:
            for path in report.write(text, store, source, methods, variants):
                print(path)
    return 0


def prepare(given: argparse.Namespace, sampling: Sampling, device: str) -> Worker:
    """The model and the pairs that the options name, on a device."""
    if given.model is None and device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # Pictures of 64x64 are too small to share; where other programs run too, threads that
        # wait for each other cost many times the work.
        torch.set_num_threads(1)
    dtype = getattr(torch, weights_dtype(given, device))
    pipe = load(given.model, given.controlnet, device, dtype)
    source: Source = DrawnPairs()
    if given.pairs is not None:
        scorers = Scorers.load(
            given.clip, given.segmenter, given.object_label, given.depth, given.niqe, device
        )
        side = native_size(pipe)
        source = FolderPairs(given.pairs, (side, side), scorers)
    if given.cases:
        source.cases = tuple(case for case in source.cases if case in given.cases)
        if not source.cases:
            raise RunError(f"--cases: {given.pairs} has no pairs of {', '.join(given.cases)}")
        # Where only the others are made, they need the pictures that would be shared.
        source.shared_foreground = source.shared_foreground and CONFLICT in source.cases
    return Worker(pipe, source, sampling)


def _methods(given: argparse.Namespace, variants: Sequence[Ablation]) -> list[Method]:
    """The rows of the main tables."""
    chosen: list[Method] = [*MAIN, COUPLED, UNPACKED] if given.coupled else list(MAIN)
    if not given.methods:
        return chosen
    known = {m.key: m for a in variants for _, m in a.methods} | {m.key: m for m in chosen}
    unknown = [key for key in given.methods if key not in known]
    if unknown:
        raise RunError(f"--methods: no {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return [known[key] for key in dict.fromkeys(given.methods)]


def _variants(worker: Worker) -> list[Ablation]:
    """The ablations that the worker's ControlNets allow."""
    nets, sampling = worker.pipe.controlnet.nets, worker.sampling
    layers = 1 + max((layer.layer for layer in self_attention_layers(nets[1])), default=0)
    everything = ablations(sampling.steps, layers, sampling.mask_reduction)
    if supports(worker.pipe):
        return everything
    return [a for a in everything if all(method.rule is None for _, method in a.methods)]


def work(
    due: Sequence[Job],
    store: Store,
    worker: Worker,
    minutes: float | None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Do the jobs and keep their rows; returns False if the time was up first."""
    began = clock()
    pictures = sum(len(job.plan.ids) for job in due if job.method is not None)
    is_silent = not (pictures and store.processes.is_first)
    with tqdm(total=pictures, unit="picture", disable=is_silent or None) as bar:
        for job in due:
            for key, scores in worker.run(job).items():
                store.add(job.plan.case, key, dict(zip(job.plan.ids, scores, strict=True)))
            if job.method is not None:
                bar.set_description(job.method.key)
                bar.update(len(job.plan.ids))
            if minutes is not None and clock() - began > minutes * 60:
                return False
    return True


def _inside(worker: Worker, batch: int) -> str:
    from . import layers

    pairs = [case for case in worker.source.cases if case not in SEVERAL]
    return layers.markdown({case: layers.look(worker, batch, case) for case in pairs})

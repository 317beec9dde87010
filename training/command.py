"""The trainer's arguments, and its data-parallel processes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from demo.command_line import (
    OutputError,
    Parser,
    number,
    prepare_folder,
    whole,
)
from training.data import CHUNK
from training.loop import wait
from training.stages import STAGES, Workshop

SEED_LIMIT = 2**32 - 1  # of the first scenes; the processes' lie above it


def main(argv: list[str] | None = None) -> int:
    """Run the named stages in order; a stage with a checkpoint goes on from there."""
    parser = Parser(prog="python3 run.py train", description="Train the demo model from scratch.")
    parser.add_argument("stages", nargs="*", help=f"which of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="autocast (a third faster here)")
    parser.add_argument(
        "--processes",
        type=whole(1, 256),
        default=1,
        help="data-parallel processes of one thread each (on a busy CPU better than threads)",
    )
    parser.add_argument(
        "--port", type=whole(1024, 65535), default=29471, help="where the processes meet"
    )
    parser.add_argument("--seed", type=whole(0, SEED_LIMIT), default=0)
    parser.add_argument(
        "--scale", type=number(0, 100), default=1.0, help="multiply every stage's steps"
    )
    parser.add_argument(
        "--pool", type=whole(CHUNK, 2**24), default=16384, help="scenes kept at a time"
    )
    arguments = parser.parse_args(argv)
    for stage in arguments.stages:
        if stage not in STAGES:
            parser.error(f"stage: {stage!r} is not one of {', '.join(STAGES)}")
    if arguments.pool < CHUNK * arguments.processes:
        parser.error(f"--pool: {arguments.pool} is less than {CHUNK} for every process")
    try:
        prepare_folder("--out", arguments.out)
    except OutputError as error:
        parser.error(str(error))
    if arguments.processes == 1:
        work(0, arguments)
    else:
        mp.spawn(work, args=(arguments,), nprocs=arguments.processes)
    return 0


def work(index: int, arguments: argparse.Namespace) -> None:
    """One process of the run."""
    if arguments.processes > 1:
        torch.set_num_threads(1)
        meeting = f"tcp://127.0.0.1:{arguments.port}"
        dist.init_process_group("gloo", meeting, rank=index, world_size=arguments.processes)
    workshop = Workshop(
        arguments.out,
        arguments.device,
        arguments.bfloat16,
        arguments.seed,
        arguments.scale,
        arguments.pool,
    )
    for stage in arguments.stages or STAGES:
        workshop.run(stage)
        wait()

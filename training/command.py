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
from training.loop import wait
from training.stages import PARTS, STAGES, Options, Workshop

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
        "--seconds",
        type=seconds_by_stage,
        default={},
        metavar="STAGE=N,...",
        help="instead of a stage's steps, as many as fit into N seconds",
    )
    parser.add_argument(
        "--pool", type=whole(64, 2**24), default=16384, help="scenes kept at a time"
    )
    parser.add_argument("--chunk", type=whole(1, 2**16), default=64, help="scenes drawn at a time")
    parser.add_argument(
        "--reuse", type=whole(1, 1000), default=8, help="how often a scene is used on average"
    )
    parser.add_argument(
        "--frozen-attention",
        action="store_true",
        help="leave the ControlNets' self-attention as the base model's",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="DIR",
        help="go on from this model's parts instead of from scratch; name the stages",
    )
    parser.add_argument("--batch", type=whole(1, 2**16), help="instead of every stage's")
    parser.add_argument("--rate", type=number(0, 1), help="instead of every stage's")
    arguments = parser.parse_args(argv)
    for stage in arguments.stages:
        if stage not in STAGES:
            parser.error(f"stage: {stage!r} is not one of {', '.join(STAGES)}")
    if arguments.pool % (arguments.chunk * arguments.processes):
        parser.error(f"--pool: {arguments.pool} is no multiple of every process's --chunk")
    if arguments.start is not None:
        missing = [part for part in PARTS if not (arguments.start / part).is_dir()]
        if missing:
            parser.error(f"--from: {arguments.start} has no {', '.join(missing)}")
        if not arguments.stages or not {"vae", "base"}.isdisjoint(arguments.stages):
            parser.error("--from: name the stages; vae and base are made from scratch")
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
    options = Options(
        device=arguments.device,
        bfloat16=arguments.bfloat16,
        seed=arguments.seed,
        scale=arguments.scale,
        seconds=arguments.seconds,
        pool=arguments.pool,
        chunk=arguments.chunk,
        reuse=arguments.reuse,
        frozen_attention=arguments.frozen_attention,
        start=arguments.start,
        batch=arguments.batch,
        rate=arguments.rate,
    )
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    workshop = Workshop(arguments.out, options)
    for stage in arguments.stages or STAGES:
        workshop.run(stage)
        wait()


def seconds_by_stage(text: str) -> dict[str, float]:
    """ "base=200,outline=50" as a dictionary; raises ArgumentTypeError."""
    found = {}
    for part in filter(None, text.split(",")):
        stage, _, value = part.partition("=")
        if stage not in STAGES:
            raise argparse.ArgumentTypeError(f"{stage!r} is not one of {', '.join(STAGES)}")
        found[stage] = number(0, 10**6)(value)
    return found

"""How long the program takes to ask for a step, where a GPU waits for the program.

At batch 1 a fast GPU is idle for half of a step: what a method adds there is the processor's time.
It is measured without a GPU, on the real architectures with a tenth of their channels and small
latents, so that nothing is left of the arithmetic, and with a CPU that is treated as an
accelerator: the same functions, the same order. Launches themselves are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.step import SHAPES, Bench
from benchmarks.timing import interleaved, ratio_table
from lib_ccn import devices

_LATENT = 16


def bench(family: str, units: int = 2, pictures: int = 1) -> Bench:
    """A family's networks with all their layers and few channels; or the demo model as it is."""
    if family not in SHAPES:
        return Bench(family, _LATENT, "cpu", torch.float32, units, pictures)
    shape = {"block_out_channels": (320, 640, 1280, 1280), **SHAPES[family]}
    channels = tuple(32 if n == 0 else 64 for n in range(len(shape["block_out_channels"])))
    shape.update(block_out_channels=channels, cross_attention_dim=32, attention_head_dim=2)
    with mock.patch.dict(SHAPES, {family: shape}):
        return Bench(family, _LATENT, "cpu", torch.float32, units, pictures)


@contextmanager
def as_accelerator() -> Iterator[None]:
    """A CPU is worked with as if it were CUDA inside."""
    accelerated = {"is_cpu": lambda _device: False, "is_cuda": lambda _device: True}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.multiple(devices, **accelerated):
            yield
    finally:
        torch.set_num_threads(threads)


def program_times(
    networks: Bench, variants: Mapping[str, dict[str, Any] | None], rounds: int
) -> dict[str, float]:
    """The processor time of a step of every variant, as a ratio to the plain one's (None).

    Medians of interleaved rounds of steps past the start step.
    """
    steps: dict[str, Callable[[], Any]] = {}
    sessions = {}
    for name, settings in variants.items():
        steps[name] = networks.plain
        if settings is not None:
            steps[name], sessions[name] = networks.variant(settings)
    with as_accelerator():
        # The first has no mask, and in it what is kept is made.
        seconds = interleaved(steps, rounds, warmup=2, clock=time.process_time)
    for name, session in sessions.items():
        session.close()
        if session.notes:
            raise RuntimeError(f"{name} did not run: {'; '.join(session.notes)}")
    plain = next(name for name, settings in variants.items() if settings is None)
    return {name: of["ratio"] for name, of in ratio_table(seconds, plain).items()}

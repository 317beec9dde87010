"""Interleaved timing: what is compared takes turns, so that a busy machine disturbs all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call every function once a round, in turn; return each one's seconds, warm-up left out."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            _synchronise()
            start = clock()
            result = function()
            _synchronise()
            elapsed = clock() - start
            del result
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def ratio_table(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    """Per name: median milliseconds, and the median over rounds of its ratio to `base`."""
    return {
        name: {
            "ms": statistics.median(times) * 1e3,
            "ratio": statistics.median(a / b for a, b in zip(times, seconds[base], strict=True)),
        }
        for name, times in seconds.items()
    }


def machine(device: str = "cpu") -> str:
    """Return one line: processor (and GPU), cores, threads and the torch version."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0].split(":", 1)[1].strip() if models else processor
    gpu = f"{torch.cuda.get_device_name()}, " if device.startswith("cuda") else ""
    return (
        f"{gpu}{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )

"""The processes that share a run: one, or those that `accelerate launch` started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch

LAUNCHER = "accelerate.commands.launch"
# One process may be done long before another; only a lost machine should end the waiting.
PATIENCE = timedelta(days=30)

T = TypeVar("T")


class ProcessError(Exception):
    """Several processes cannot work here; the message says what is missing."""


class Processes:
    """This process among those of the run; without a launcher it is the only one.

    Attributes:
        count: of processes, on all machines.
        index: of this one, from 0; the first one writes and prints.
        local: its index on this machine.
        device: what it computes on, such as "cpu" or "cuda:1".

    Args:
        device: "cpu", "cuda", ...; None takes the machine's GPUs if a launcher is at work, and
            the CPU otherwise.

    Raises:
        ProcessError: a launcher is at work and accelerate is not installed.
    """

    def __init__(self, device: str | None = None) -> None:
        self.count, self.index, self.local = 1, 0, 0
        self.device = device or "cpu"
        self._state: Any = None
        if not launched():
            return
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ProcessError(f"several processes need the package accelerate ({error})") from None
        on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
        # Rows alone are exchanged, a few megabytes: gloo needs no GPU for them, and no GPU waits.
        self._state = PartialState(cpu=on_cpu, backend="gloo", timeout=PATIENCE)
        self.count = int(self._state.num_processes)
        self.index = int(self._state.process_index)
        self.local = int(self._state.local_process_index)
        self.device = "cpu" if on_cpu else str(self._state.device)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.index == 0

    def gathered(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the processes' order; every one waits for all others."""
        if self._state is None:
            return list(items)
        from accelerate.utils import gather_object

        return list(gather_object(list(items)))

    def wait(self) -> None:
        """Wait for all others."""
        self.gathered([])

    def close(self) -> None:
        """Part from the others, after all have come here."""
        if self._state is not None:
            self.wait()
            self._state.destroy_process_group()
            self._state = None


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def launch(count: int, module: Sequence[str]) -> int:
    """Run `python -m` with these words in several processes on this machine; the exit status.

    Raises:
        ProcessError: accelerate is not installed.
    """
    try:
        import accelerate  # noqa: F401 - asked for in a sentence before it is run
    except ImportError as error:
        raise ProcessError(f"--processes needs the package accelerate ({error})") from None
    # `--multi_gpu` means one process per device; with `--device cpu` they are the CPU's.
    how = ["--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    words = [*how, f"--num_processes={count}", "--main_process_port=0", "-m", *module]
    started = subprocess.Popen(
        [sys.executable, "-m", LAUNCHER, *words], env={"OMP_NUM_THREADS": "1", **os.environ}
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is theirs; we wait for them
    try:
        return started.wait()
    finally:
        signal.signal(signal.SIGINT, before)

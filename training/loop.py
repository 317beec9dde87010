"""One training loop for every stage: AdamW, warm-up and cosine decay, EMA, resumable.

On a CUDA device a step is captured once as a graph and replayed, so that the processor's own time
for launching a thousand small kernels is spent once. Nothing in the loop waits for the device.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_SECONDS = 60
LOSS_STEPS = 50  # of which the history keeps the mean
TIMED_STEPS = 100  # after so many the steps that fit into `Schedule.seconds` are known


@dataclass
class Schedule:
    """How long and how fast a stage learns.

    Attributes:
        steps: of the optimiser.
        batch: scenes per step, over all processes.
        rate: the largest learning rate.
        warmup: steps until it is reached.
        ema: decay of the averaged weights.
        seconds: instead of `steps`, as many as fit into this time.
    """

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    ema: float = 0.998
    seconds: float | None = None

    def rate_at(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine to zero."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(
    name: str,
    modules: Iterable[nn.Module],
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    folder: Path,
    between: Callable[[int], None] | None = None,
) -> list[float]:
    """Run a stage to its end, from its checkpoint where there is one.

    Args:
        name: of the stage, and of its checkpoint file.
        modules: what learns: their parameters that require a gradient.
        loss_of: draws a batch of the given size and returns its loss, without waiting for the
            device.
        schedule: steps, batch, rate. `steps` is set where `seconds` is given.
        folder: where the checkpoint lies.
        between: called with the step's number before every step.

    Returns:
        The mean loss of every 50 steps. The modules end with their EMA weights.
    """
    began = time.monotonic()
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    plain = [p.detach() for p in parameters]
    graphs = plain[0].is_cuda and world() == 1
    rate: float | Tensor = schedule.rate
    if graphs:
        rate = torch.tensor(schedule.rate, device=plain[0].device)
    options: dict[str, Any] = {
        "lr": rate,
        "foreach": not graphs,
        "fused": graphs,
        "capturable": graphs,
    }
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01, **options)
    average = [p.clone() for p in plain]
    history: list[Tensor] = []
    start, spent = 0, 0.0
    path = folder / f"{name}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location=plain[0].device)
        torch._foreach_copy_(plain, saved["parameters"])
        torch._foreach_copy_(average, saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        for group in optimizer.param_groups:
            group.update(options)  # this device's, which may not be the checkpoint's
        start, spent = saved["step"], saved["seconds"]
        history = list(torch.tensor(saved["history"], device=plain[0].device))
        if "steps" in saved:
            schedule.steps, schedule.seconds = saved["steps"], None

    def save(step: int) -> None:
        state = {
            "parameters": plain,
            "average": average,
            "optimizer": optimizer.state_dict(),
            "step": step,
            "history": [float(loss) for loss in history],
            "seconds": spent + time.monotonic() - began,
        }
        if schedule.seconds is not None:
            state["steps"] = schedule.steps
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def step_once() -> Tensor:
        loss = loss_of(schedule.batch // world())
        loss.backward()
        _average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    torch.manual_seed(torch.initial_seed() + 1000 * rank() + start)
    first = rank() == 0
    stepping = _Stepper(step_once, optimizer, graphs)
    total = torch.zeros((), device=plain[0].device)
    bar = tqdm(total=schedule.steps, initial=start, desc=name, disable=not first, mininterval=2)
    step, saved_at, timed_from = start, began, began
    while step < schedule.steps:
        if between is not None:
            between(step)
        _set_rate(optimizer, schedule.rate_at(step))
        total += stepping.step()
        decay = min(schedule.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, plain, 1 - decay)
        step += 1
        bar.update()
        if step % LOSS_STEPS == 0:
            history.append(total / LOSS_STEPS)
            total = torch.zeros_like(total)
        if schedule.seconds is not None and step - start in (TIMED_STEPS, 2 * TIMED_STEPS):
            now = _now(plain[0])
            if step - start == 2 * TIMED_STEPS:
                left = schedule.seconds - (now - began)
                fit = int(left / ((now - timed_from) / TIMED_STEPS))
                schedule.steps = _agreed(step + max(0, fit), plain[0].device)
                bar.total = schedule.steps
            timed_from = now
        if first and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            save(step)
            saved_at = time.monotonic()
            bar.set_postfix(loss=f"{float(history[-1]) if history else math.nan:.4f}")
    bar.close()
    torch._foreach_copy_(plain, average)
    if first and start < schedule.steps:
        save(schedule.steps)
    return [float(loss) for loss in history]


class _Stepper:
    """Steps of a training loop, replayed from a CUDA graph where that can be captured."""

    def __init__(
        self, once: Callable[[], Tensor], optimizer: torch.optim.Optimizer, graphs: bool
    ) -> None:
        self.once, self.optimizer = once, optimizer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager_steps = 3 if graphs else -1  # before the capture, for what is set up lazily
        self.loss = torch.zeros(())

    def step(self) -> Tensor:
        """One step's loss; the next step may overwrite it."""
        if self.graph is not None:
            self.graph.replay()
            return self.loss
        if self.eager_steps == 0 and self._capture():
            return self.step()
        if self.eager_steps > 0:
            self.eager_steps -= 1
            with _SideStream():
                return self._eager()
        return self._eager()

    def _eager(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        return self.once()

    def _capture(self) -> bool:
        self.eager_steps = -1
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.loss = self.once()
        except RuntimeError as error:
            print(f"no CUDA graph, going on without: {error}", file=sys.stderr)
            torch.cuda.synchronize()
            return False
        self.graph = graph
        return True


class _SideStream:
    """A block on a stream of its own, which the current one waits for, and the other way round."""

    def __enter__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        self.inner = torch.cuda.stream(self.stream)
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)
        torch.cuda.current_stream().wait_stream(self.stream)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _now(tensor: Tensor) -> float:
    """Seconds, after the tensor's device has done all that it was given."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.monotonic()


def rank() -> int:
    """Which of the data-parallel processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many data-parallel processes share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _agreed(count: int, device: torch.device) -> int:
    """The first process's count: one that made a step more would wait for the others for ever."""
    if world() == 1:
        return count
    counts = torch.tensor([count], device=device)
    dist.broadcast(counts, 0)
    return int(counts)


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        dist.barrier()


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))

"""One training loop for every stage: AdamW, warm-up and cosine decay, EMA, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_EVERY = 250


@dataclass
class Schedule:
    """How long and how fast a stage learns."""

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    ema: float = 0.998

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
) -> list[float]:
    """Run a stage to its end, from its checkpoint where there is one.

    Args:
        name: of the stage, and of its checkpoint file.
        modules: what learns: their parameters that require a gradient.
        loss_of: draws a batch of the given size and returns its loss.
        schedule: steps, batch, rate.
        folder: where the checkpoint lies.

    Returns:
        The mean loss of every 50 steps. The modules end with their EMA weights.
    """
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=schedule.rate, betas=(0.9, 0.99), weight_decay=0.01, foreach=True
    )
    average = [p.detach().clone() for p in parameters]
    history: list[float] = []
    start, spent = 0, 0.0
    path = folder / f"{name}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        for p, value in zip(parameters, saved["parameters"], strict=True):
            p.data.copy_(value)
        average = [a.copy_(v) for a, v in zip(average, saved["average"], strict=True)]
        optimizer.load_state_dict(saved["optimizer"])
        start, history, spent = saved["step"], saved["history"], saved["seconds"]

    def save(step: int) -> None:
        state = {
            "parameters": [p.detach() for p in parameters],
            "average": average,
            "optimizer": optimizer.state_dict(),
            "step": step,
            "history": history,
            "seconds": spent + time.monotonic() - began,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    began, recent = time.monotonic(), []
    first = rank() == 0
    torch.manual_seed(torch.initial_seed() + 1000 * rank() + start)
    bar = tqdm(
        range(start, schedule.steps),
        initial=start,
        total=schedule.steps,
        desc=name,
        disable=not first,
        mininterval=2,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = loss_of(schedule.batch // world())
        loss.backward()
        _average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(schedule.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        recent.append(float(loss.detach()))
        if len(recent) == 50:
            history.append(sum(recent) / 50)
            recent.clear()
            bar.set_postfix(loss=f"{history[-1]:.4f}")
        if first and (step + 1) % CHECKPOINT_EVERY == 0:
            save(step + 1)
    for p, value in zip(parameters, average, strict=True):
        p.data.copy_(value)
    if first and start < schedule.steps:
        save(schedule.steps)
    return history


def rank() -> int:
    """Which of the data-parallel processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many data-parallel processes share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


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

"""Runs of a diffusers pipeline on a GPU, and what is measured of them."""

from __future__ import annotations

import collections
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.formula import wrong_channels, wrong_pixels
from benchmarks.random_pipelines import PROMPT, WORD
from lib_ccn.fusion import fuse_residuals
from lib_ccn.hosts.diffusers import cross_controlnet

PLAIN, FUSION, METHOD = "plain", "fusion", "whole, a word's mask"
VARIANTS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "`sum`": {"fusion": "sum", "inject": False},
    FUSION: {"inject": False},
    METHOD: {"mask_source": "word", "foreground_word": WORD, "mask_threshold": 0.5},
    "whole, mask all ones": {"mask_source": "all"},
}
# Steps before those that are timed: none has a mask before the first is done.
SKIPPED = 2
ROUNDS = 7
FEWEST_ROUNDS = 3
# Random units hardly agree: at this delta some do.
HARDLY = 0.02


@dataclass
class Bench:
    """One pipeline with its inputs."""

    pipe: Any
    family: str
    size: int
    pictures: int = 1

    def run(
        self,
        settings: Mapping[str, Any] | None,
        steps: int,
        on_fused: Callable[..., None] | None = None,
    ) -> tuple[Tensor, float, Any]:
        """Make pictures' latents.

        Returns them, the seconds of a step past the first `SKIPPED` (NaN without such) and what
        `cross_controlnet` gave, None for the plain pipeline.
        """
        given = dict(settings or {})
        context: Any = nullcontext()
        if settings is not None:
            context = cross_controlnet(self.pipe, {"start_step": 1, "strict": True, **given})
        with context as control, self._stamped(SKIPPED) as stamps:
            if control is not None:
                control.on_fused = on_fused
            latents = self.pipe(
                [PROMPT] * self.pictures,
                num_inference_steps=steps,
                output_type="latent",
                generator=torch.Generator().manual_seed(0),
                **self._inputs(),
            ).images
            synchronise()
            end = time.perf_counter()
        timed = steps - SKIPPED
        seconds = (end - stamps[0]) / timed if timed > 0 else float("nan")
        return latents, seconds, control

    def _inputs(self) -> dict[str, Any]:
        units = len(self.pipe.controlnet.nets)
        shape = (units, 1, 3, self.size, self.size)
        images = list(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
        if self.family == "flux":
            scales = {"controlnet_conditioning_scale": [1.0] * units}
            return {"control_image": images, "height": self.size, "width": self.size, **scales}
        return {"image": images}

    @contextmanager
    def _stamped(self, number: int) -> Iterator[list[float]]:
        """The time when that many of the scheduler's steps are done."""
        scheduler = self.pipe.scheduler
        own, count, stamps = scheduler.step, itertools.count(1), list[float]()

        def step(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            if next(count) == number:
                synchronise()
                stamps.append(time.perf_counter())
            return result

        scheduler.step = step
        try:
            yield stamps
        finally:
            del scheduler.step


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def first_runs(bench: Bench, steps: int) -> dict[str, Any]:
    """Every variant once: memory, whether it is finite and equals the plain one, what was done."""
    bench.run(None, SKIPPED)  # libraries make their work spaces
    rows: dict[str, Any] = {}
    plain = None
    for name, settings in VARIANTS.items():
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        latents, _, control = bench.run(settings, steps)
        plain = latents if plain is None else plain
        rows[name] = {
            "finite": bool(latents.isfinite().all()),
            "equals plain": bool(torch.equal(latents, plain)),
            "difference": float((latents.float() - plain.float()).abs().mean()),
        }
        if torch.cuda.is_available():
            rows[name]["peak MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
        if control is not None:
            rows[name]["done"] = control.summary()
            rows[name]["injected a step"] = control.session.injected / (steps - 1)
    return rows


def times(bench: Bench, steps: int, until: float, rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds a step and ratios to the plain one: medians of interleaved runs."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() > until:
            break
        for name, settings in VARIANTS.items():
            seconds[name].append(bench.run(settings, SKIPPED + steps)[1])
    return {
        name: {
            "ms": statistics.median(found) * 1e3,
            "ratio": statistics.median([a / b for a, b in zip(found, seconds[PLAIN], strict=True)]),
            "rounds": len(found),
        }
        for name, found in seconds.items()
    }


def waits(bench: Bench, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Waits for the device that one more step makes, and where."""
    fewer, more = (_synchronisations(bench, settings, SKIPPED + n) for n in (1, 2))
    places = more - fewer
    return {"total": places.total(), "places": dict(places.most_common(12))}


def _synchronisations(
    bench: Bench, settings: Mapping[str, Any] | None, steps: int
) -> collections.Counter[str]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            bench.run(settings, steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [w for w in seen if "synchroniz" in str(w.message).lower()]
    return collections.Counter(f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in told)


def kernels(bench: Bench, settings: Mapping[str, Any] | None) -> dict[str, float]:
    """Kernels and milliseconds of a busy GPU that one more step makes."""
    (few, short), (many, long) = (_profiled(bench, settings, SKIPPED + n) for n in (1, 2))
    return {"kernels": many - few, "busy ms": long - short}


def _profiled(bench: Bench, settings: Mapping[str, Any] | None, steps: int) -> tuple[int, float]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        bench.run(settings, steps)
    on_gpu = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len(on_gpu), sum(e.time_range.elapsed_us() for e in on_gpu) / 1e3


def residuals(bench: Bench) -> dict[str, Any]:
    """One call's units fused again, and compared with the formulas in float64."""
    calls: list[tuple[Any, Sequence[Any]]] = []

    def keep(session: Any, outputs: Mapping[Any, Any]) -> None:
        calls[:] = [(session, list(outputs.values()))]

    bench.run(VARIANTS[FUSION], SKIPPED, keep)
    session, outputs = calls[0]
    units = [_maps(output) for output in outputs] if bench.family == "flux" else outputs
    found = {"pixels": 0, "wrong pixels": 0, "channels": 0, "wrong channels": 0}
    for delta in (session.settings.delta, HARDLY):
        fused = fuse_residuals(units, session.settings.fusion, delta)
        *layers, last = zip(*units, fused, strict=True)
        for kind, wrong_in, of in (
            ("pixels", wrong_pixels, layers),
            ("channels", wrong_channels, [last]),
        ):
            for *layer, result in of:
                wrong, asked = wrong_in(layer, result, delta)
                found[f"wrong {kind}"] += wrong
                found[kind] += asked
    return found


def _maps(output: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """A FLUX ControlNet's sequences [B, tokens, C] as square maps."""
    tokens = [sequence for kind in output for sequence in kind or ()]
    side = int(tokens[0].shape[1] ** 0.5)
    return [sequence.mT.unflatten(-1, (side, side)) for sequence in tokens]

"""Pictures made here, by diffusers, with a model and ControlNets of the user's."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch

from demo.demo import load_family
from demo.demo_model import ModelError
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings
from lib_ccn.showable import showable
from lib_ccn.webui.pictures import Result

from .made import Job, Made, MakeError, Sampling
from .pairs import NEGATIVE

SAMPLER = "UniPC"


class Local:
    """The maker of pictures that runs diffusers.

    Args:
        model: a folder in diffusers' layout, or a hub id.
        nets: a folder or hub id for each kind of condition, two or more.
        family: `SD15` or `SDXL`.
        device: "cpu", "cuda", "mps".
        sampling: what to sample with; the sampler is UniPC.

    Raises:
        MakeError: a model cannot be loaded, or is of another family.
    """

    def __init__(
        self, model: str, nets: Mapping[str, str], family: str, device: str, sampling: Sampling
    ) -> None:
        self.nets = nets
        self.sampling = Sampling(sampling.size, sampling.steps, sampling.guidance_scale, SAMPLER)
        self._model = model
        try:
            self._pipe = load_family(family, model, list(nets.values()), device)
        except ModelError as error:
            raise MakeError(str(error)) from error
        self._loaded = dict(zip(nets, self._pipe.controlnet.nets, strict=True))
        self._pairs: dict[tuple[str, str], Any] = {}

    def identity(self) -> dict[str, Any]:
        """The model, as it was named, and what is computed in."""
        folder = Path(self._model).expanduser()
        name = str(folder.resolve()) if folder.exists() else self._model
        return {"model": name, "dtype": str(self._pipe.dtype), "device": self._pipe.device.type}

    def about(self) -> dict[str, str]:
        """Card, versions and models."""
        device = self._pipe.device
        told = {
            "made by": f"diffusers {diffusers.__version__}",
            "card": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "weights": str(self._pipe.dtype).removeprefix("torch."),
            "PyTorch": torch.__version__,
            "CUDA": str(torch.version.cuda or ""),
            "Python": platform.python_version(),
            "system": platform.platform(),
            "model": Path(self._model).name if Path(self._model).exists() else self._model,
        }
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            told["its memory"] = f"{total / 2**30:.1f} GiB"
        return {name: showable(text, 200) for name, text in told.items() if text}

    def make(self, job: Job) -> Made:
        """One picture; the first one with these ControlNets comes after a short run."""
        if job.pair.kinds not in self._pairs:
            self._pairs[job.pair.kinds] = self._pipe_for(job.pair.kinds)
            self._run(job, None, steps=2)  # libraries choose their kernels, and make work spaces
        return self._run(job, job.settings, self.sampling.steps)

    def interrupt(self) -> None:
        """Nothing goes on elsewhere."""

    def _run(self, job: Job, settings: Mapping[str, Any] | None, steps: int) -> Made:
        pipe = self._pairs[job.pair.kinds]
        context: Any = nullcontext()
        began = time.monotonic()
        try:
            if settings is not None:
                context = cross_controlnet(pipe, Settings.from_dict(settings))
            with context as control, _step_ends(pipe) as ends:
                picture = pipe(
                    job.pair.prompt,
                    negative_prompt=NEGATIVE,
                    image=list(job.conditions),
                    num_inference_steps=steps,
                    guidance_scale=self.sampling.guidance_scale,
                    generator=torch.Generator().manual_seed(job.seed),
                ).images[0]
        except (RuntimeError, ValueError, TypeError) as error:
            reason = showable(str(error).strip().splitlines()[0], 300) if str(error) else ""
            raise MakeError(
                f"{job.pair.name}, {job.method}: {type(error).__name__}: {reason}"
            ) from error
        seconds = time.monotonic() - began
        made = Made(picture.convert("RGB"), None, seconds, None)
        if len(ends) > 1:
            made.step_seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
        if settings is not None:
            made.done = [control.summary()]
            made.note = "" if control.error is None else showable(control.error, 300)
            if settings["show_mask"] and control.session is not None:
                shown = Result()
                shown.take(control.session, 1)
                made.strip = shown.strip(made.picture, 0)
        return made

    def _pipe_for(self, kinds: tuple[str, str]) -> Any:
        """The model with the ControlNets of these two kinds of condition."""
        parts = {**self._pipe.components, "controlnet": [self._loaded[kind] for kind in kinds]}
        if "safety_checker" in parts:
            parts["requires_safety_checker"] = False
        pipe = type(self._pipe)(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe


@contextmanager
def _step_ends(pipe: Any) -> Iterator[list[float]]:
    """The times at which the pipeline's sampling steps have ended, once the device is done."""
    scheduler, ends = pipe.scheduler, list[float]()
    own = scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.monotonic())
        return result

    scheduler.step = step
    try:
        yield ends
    finally:
        del scheduler.step

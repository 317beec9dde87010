"""The demo's pipelines of the other families: SDXL and FLUX, real ones or tiny random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UniPCMultistepScheduler,
)

from lib_ccn.families import FAMILIES
from lib_ccn.hosts.diffusers import check_belonging

from .demo_model import ModelError, is_flux, load_part, load_pipeline, native_size, usable_device
from .random_models import random_flux, random_sdxl

_KINDS: dict[str, tuple[Any, Any]] = {
    "sdxl": (StableDiffusionXLControlNetPipeline, ControlNetModel),
    "flux": (FluxControlNetPipeline, FluxControlNetModel),
}
_RANDOM: dict[str, Callable[..., Any]] = {"sdxl": random_sdxl, "flux": random_flux}
# The bundled examples' size; nothing was trained, so no size is the model's own.
RANDOM_SIZE = 64


def load_family(
    family: str,
    model: str | Path | None = None,
    controlnets: Sequence[str | Path] | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """Load a pipeline of that family with several ControlNets.

    Args:
        family: a key of `FAMILIES`.
        model: a folder in diffusers' layout or a hub id; None is the bundled model for "sd15",
            and a tiny one with random weights for the others.
        controlnets: folders or hub ids, the foreground's first.
        device: "cpu", "cuda", "mps". On a CPU the weights are float32, elsewhere of half size.

    Raises:
        ModelError: something is missing, cannot be read, or is of another family.
    """
    if family == "sd15":
        return load_pipeline(model, controlnets, device)
    place = usable_device(device)
    if model is None:
        return _RANDOM[family]().to(place)
    title = FAMILIES[family].title
    if controlnets is None or len(controlnets) < 2:
        raise ModelError(f"{title} comes with no ControlNets: name two or more of your own")
    kind, net_kind = _KINDS[family]
    half = torch.bfloat16 if family == "flux" else torch.float16
    dtype = torch.float32 if place.type == "cpu" else half
    nets = [load_part(net_kind, name, torch_dtype=dtype) for name in controlnets]
    pipe = load_part(kind, model, controlnet=nets, torch_dtype=dtype)
    try:
        check_belonging(pipe)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{model} cannot be used as {title}: {error}") from error
    if not is_flux(pipe):
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place, dtype)


def default_side(pipe: Any, random_weights: bool) -> int:
    """The side, in pixels, of the pictures to make where nobody says it."""
    return RANDOM_SIZE if random_weights else native_size(pipe)

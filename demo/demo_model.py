"""Loading the bundled demo model, or any Stable Diffusion 1.5, and making pictures with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from . import ROOT
from .examples import Example

BUNDLED = ROOT / "models" / "demo"
CONTROLNETS = ("controlnet-outline", "controlnet-regions")
OUTLINES = "controlnet-outlines"  # in place of the first where there are several objects
PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
INDEX = "model_index.json"


class ModelError(Exception):
    """A model cannot be used here; the message says which and why."""


def load_pipeline(
    model: str | Path | None = None,
    controlnets: Sequence[str | Path] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    several: bool = False,
) -> StableDiffusionControlNetPipeline:
    """Load a Stable Diffusion 1.5 pipeline with several ControlNets and the UniPC sampler.

    Args:
        model: a folder in diffusers' layout, a hub id, or None for the bundled demo model. Only
            a hub id may use the network.
        controlnets: folders or hub ids, the foreground's first; None takes the two that lie in
            the model's own folder, as the bundled model's do.
        device: "cpu", "cuda", "mps".
        dtype: of the weights; None is float32 on a CPU and float16 elsewhere.
        several: a third one comes after the model's own two: that for outlines of several
            objects, where it has one; see `with_controlnets`.

    Raises:
        ModelError: something is missing, cannot be read, or is not Stable Diffusion 1.5.
    """
    place = usable_device(device)
    dtype = dtype or (torch.float32 if place.type == "cpu" else torch.float16)
    source = BUNDLED if model is None else model
    folder = _folder(source)
    if folder is not None:
        _check_layout(folder)
    if controlnets is None:
        if folder is None:
            raise ModelError(f"{source} is no folder here; for a hub id name two ControlNets too")
        if not all((folder / name).is_dir() for name in CONTROLNETS):
            raise ModelError(f"{source} comes with no ControlNets: name two of your own")
        controlnets = [folder / name for name in CONTROLNETS]
        if several and (folder / OUTLINES).is_dir():
            controlnets.append(folder / OUTLINES)
    if len(controlnets) < 2:
        raise ModelError(f"{len(controlnets)} ControlNet given: the method fuses two or more")
    for net in controlnets:
        _check_controlnet(net)
    nets = [load_part(ControlNetModel, net) for net in controlnets]
    pipe = load_part(StableDiffusionControlNetPipeline, source, controlnet=nets)
    _check_family(pipe, nets, source, controlnets)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    # transformers loads a model in its file's dtype, diffusers in float32: one cast for all.
    return pipe.to(place, dtype)


def save_pipeline_index(folder: Path) -> None:
    """Write the `model_index.json` of a plain StableDiffusionPipeline for the parts in `folder`.

    Raises:
        ModelError: a part is missing.
    """
    missing = [name for name in PARTS if not (folder / name).is_dir()]
    if missing:
        raise ModelError(f"{folder} has no {', '.join(missing)}")
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def without_controlnets(pipe: Any) -> StableDiffusionPipeline:
    """The same model as a plain text-to-image pipeline; its parts are shared."""
    parts = {name: part for name, part in pipe.components.items() if name != "controlnet"}
    return _quiet(StableDiffusionPipeline(**parts, requires_safety_checker=False))


def with_one_controlnet(pipe: Any, number: int) -> Any:
    """The same model with only one of its ControlNets; its parts are shared."""
    return _with(pipe, pipe.controlnet.nets[number])


def with_controlnets(pipe: Any, numbers: Sequence[int]) -> Any:
    """The same model with these of its ControlNets, in this order; its parts are shared.

    One may be there more than once.
    """
    if list(numbers) == list(range(len(pipe.controlnet.nets))):
        return pipe
    return _with(pipe, type(pipe.controlnet)([pipe.controlnet.nets[n] for n in numbers]))


def fitting(pipe: Any, example: Example) -> Any:
    """The same model with the ControlNets that read an example's conditions."""
    return with_controlnets(pipe, example.nets(len(pipe.controlnet.nets)))


def _with(pipe: Any, controlnet: Any) -> Any:
    parts = {**pipe.components, "controlnet": controlnet}
    more = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    return _quiet(type(pipe)(**parts, **more))


def native_size(pipe: Any) -> int:
    """The side, in pixels, of the pictures that the model was trained on."""
    if is_flux(pipe):
        return int(pipe.default_sample_size * pipe.vae_scale_factor)
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def is_flux(pipe: Any) -> bool:
    """Whether the pipeline is one of FLUX, which has other arguments."""
    return hasattr(pipe, "transformer")


@torch.inference_mode()
def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    conditions: Tensor | Sequence[Tensor] | None = None,
    *,
    steps: int = 20,
    guidance_scale: float = 3.0,
    negative_prompt: str = "",
    size: tuple[int, int] | None = None,
    on_step: Callable[[int], None] | None = None,
    control_modes: Sequence[int] | None = None,
) -> Tensor:
    """Make one picture per prompt: float32 [B, 3, height, width] in [0, 1], on the CPU.

    Args:
        pipe: what `load_pipeline`, `without_controlnets` or `with_one_controlnet` returned, or
            `families.load_family`.
        prompts: B of them.
        seeds: one per picture, so that it does not depend on the batch it is made in.
        conditions: [B, 3, height, width] in [0, 1], or one such tensor per ControlNet.
        steps: of the sampler.
        guidance_scale: 1 does without classifier-free guidance.
        negative_prompt: for every picture.
        size: (width, height) where there are no conditions to take it from.
        on_step: called after every step with the number of pictures in the batch.
        control_modes: of FLUX union ControlNets, one per condition.
    """
    # Noise is drawn on the CPU, so that a seed means the same picture on every device.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    more: dict[str, Any] = {}
    if conditions is not None and is_flux(pipe):
        # A tensor goes to the VAE as it is, and that was trained on [-1, 1].
        more["control_image"] = [condition * 2 - 1 for condition in conditions]
        # It takes no single number for several ControlNets, its own default included.
        more["controlnet_conditioning_scale"] = [1.0] * len(conditions)
        more["height"], more["width"] = conditions[0].shape[-2:]
        more["control_mode"] = None if control_modes is None else list(control_modes)
    elif conditions is not None:
        more["image"] = conditions if isinstance(conditions, Tensor) else list(conditions)
    elif size is not None:
        more["width"], more["height"] = size

    def stepped(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(len(prompts))
        return values

    return (
        pipe(
            list(prompts),
            negative_prompt=[negative_prompt] * len(prompts),
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="pt",
            callback_on_step_end=stepped,
            **more,
        )
        .images.float()
        .cpu()
    )


def usable_device(device: str | torch.device) -> torch.device:
    """The device, tried; raises ModelError."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the device {device} cannot be used: {reason}") from error
    return place


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _folder(source: str | Path) -> Path | None:
    """The folder that `source` names, or None for a hub id ("owner/name", no such folder)."""
    path = Path(source).expanduser()
    looks_like_id = isinstance(source, str) and source.count("/") == 1 and source[0] not in "./~"
    return None if looks_like_id and not path.exists() else path


def _check_layout(folder: Path) -> None:
    if not folder.is_dir():
        hint = (
            "; the bundled model is part of the repository: is this a full checkout?"
            if folder == BUNDLED
            else " (expected a folder in diffusers' layout, or a hub id such as owner/name)"
        )
        raise ModelError(f"there is no model folder {folder}{hint}")
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} is no model in diffusers' layout: it has no {INDEX}")
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        kind = str(index["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / INDEX} cannot be read: {error}") from error
    if not kind.startswith("StableDiffusion") or "XL" in kind or "StableDiffusion3" in kind:
        raise ModelError(f"{folder} holds a {kind}; expected Stable Diffusion 1.5")


def _check_controlnet(source: str | Path) -> None:
    folder = _folder(source)
    if folder is None:
        return
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text("utf-8")).get("_class_name")
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no ControlNet in {folder}: {path.name}: {error}") from error
    if kind != "ControlNetModel":
        raise ModelError(f"{folder} holds a {kind}; expected a ControlNetModel")


def _check_family(
    pipe: Any,
    nets: Sequence[Any],
    source: str | Path,
    names: Sequence[str | Path],
) -> None:
    config = pipe.unet.config
    if config.get("addition_embed_type") is not None or config.in_channels != 4:
        raise ModelError(f"{source} is not Stable Diffusion 1.5 (or is its inpainting variant)")
    for net, name in zip(nets, names, strict=True):
        ours, theirs = config.cross_attention_dim, net.config.cross_attention_dim
        if ours != theirs or tuple(config.block_out_channels) != tuple(
            net.config.block_out_channels
        ):
            raise ModelError(
                f"ControlNet {name} (text width {theirs}) does not belong to {source} "
                f"(text width {ours}): both must be of the Stable Diffusion 1.5 family"
            )


def load_part(kind: Any, source: str | Path, **more: Any) -> Any:
    """Load a pipeline or ControlNet of a class; raises ModelError with the first line of why not.

    Only a hub id may use the network.
    """
    folder = _folder(source)
    what = "ControlNet" if kind.__name__.endswith("ControlNetModel") else "model"
    if folder is not None and not folder.is_dir():
        raise ModelError(f"the {what} {source} cannot be loaded: there is no such folder")
    try:
        return kind.from_pretrained(
            source if folder is None else folder,
            local_files_only=folder is not None,
            low_cpu_mem_usage=False,  # otherwise diffusers advises to install accelerate
            **more,
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"the {what} {source} cannot be loaded: {first[0]}") from error

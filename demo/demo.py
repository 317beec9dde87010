"""The demo: the same noise and conditions under every rule of fusion, as one figure."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor

from lib_ccn.families import FAMILIES
from lib_ccn.hosts.diffusers import check_belonging, cross_controlnet, family_of
from lib_ccn.images import ImageError, read_picture, to_condition
from lib_ccn.settings import Settings, SettingsError

from .command_line import OutputError, prepare_file
from .demo_model import (
    ModelError,
    generate,
    is_flux,
    load_part,
    load_pipeline,
    native_size,
    usable_device,
)
from .examples import Example, bundled_examples
from .figures import Column, Row, draw_figure, overlay, to_image
from .metrics import object_iou
from .options import DemoOptions
from .progress import step_bar

HEADS = {
    "foreground": Column("Foreground", "condition", "Conditions"),
    "background": Column("Background", "condition", "Conditions"),
    "sum": Column("Plain sum", "as usual", "Baselines"),
    "mean": Column("Mean", "of the units", "Baselines"),
    "max": Column("MaxFusion", "output rule", "Baselines"),
    "pix": Column("PixFusion", "per pixel", "Cross-ControlNet"),
    "pix+channel": Column("+ ChannelFusion", "middle residual", "Cross-ControlNet"),
    "full": Column("+ KV-Injection", "full method", "Cross-ControlNet"),
    "mask": Column("Mask", "at the last step", "Cross-ControlNet"),
}
CONDITIONS = ("foreground", "background")
# Of each family: its pipeline, its ControlNets, and their weights' type on a GPU.
_KINDS: dict[str, tuple[Any, Any, torch.dtype]] = {
    "sdxl": (StableDiffusionXLControlNetPipeline, ControlNetModel, torch.float16),
    "flux": (FluxControlNetPipeline, FluxControlNetModel, torch.bfloat16),
}
# The bundled examples' size; nothing was trained, so no size is a random model's own.
RANDOM_SIZE = 64


class DemoError(Exception):
    """The demo cannot be made; the message says why."""


@dataclass(frozen=True)
class Result:
    """One way of fusing, for every example: pictures [B, 3, H, W], masks (None where none is)."""

    pictures: Tensor
    masks: list[Tensor | None]
    summary: str


def run(options: DemoOptions) -> int:
    """Make the figure; returns the exit status."""
    began = time.monotonic()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        prepare_file("--out", options.out)
        if options.random_weights:
            print(_random_warning(options))
        pipe = load_family(options.family, options.model, options.controlnets, options.device)
        side = RANDOM_SIZE if options.random_weights else native_size(pipe)
        examples = _examples(options, options.size or (side, side))
        results = _generate_all(pipe, examples, options)
        figure = _figure(examples, results, options)
        figure.save(options.out)
    except (ModelError, SettingsError, OutputError, DemoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (SettingsError, OutputError)) else 1
    settings, family = options.settings, FAMILIES[options.family]
    if settings.inject and "full" in results:
        paper = Settings().at_steps(family.steps).start_step
        print(
            f"KV-Injection from step {settings.start_step} of {options.steps} "
            f"(the paper: {paper} of {family.steps}); full method: " + results["full"].summary
        )
    print(f"{options.out}  ({time.monotonic() - began:.0f} s)")
    return 0


def _examples(options: DemoOptions, size: tuple[int, int]) -> list[Example]:
    if options.prompt is None or options.foreground is None or options.background is None:
        examples = [_scaled(example, size) for example in bundled_examples(options.seed)]
        if options.random_weights:  # there is no object to be measured
            return [replace(example, object_mask=None) for example in examples]
        return examples
    foreground, background = (
        _read_image(path, size) for path in (options.foreground, options.background)
    )
    return [Example(options.prompt, "", foreground, background, options.seed)]


def _scaled(example: Example, size: tuple[int, int]) -> Example:
    """The example at another size; there is no mask to measure with there."""
    if example.foreground.shape[-2:] == (size[1], size[0]):
        return example
    foreground, background = (
        F.interpolate(image[None], size=(size[1], size[0]), mode="bilinear", antialias=True)[0]
        for image in (example.foreground, example.background)
    )
    return Example(example.prompt, example.word, foreground, background, example.seed)


def _read_image(path: Path, size: tuple[int, int]) -> Tensor:
    try:
        return to_condition(read_picture(path, size), size)
    except ImageError as error:
        raise DemoError(f"{path} is no image that can be read: {error}") from error


def _generate_all(
    pipe: Any, examples: Sequence[Example], options: DemoOptions
) -> dict[str, Result]:
    """What each wanted column needs, by its name; the mask comes with the full method."""
    wanted = [name for name in HEADS if name in options.columns and name not in CONDITIONS]
    if "mask" in wanted:
        wanted = [*(name for name in wanted if name not in ("full", "mask")), "full"]
    results: dict[str, Result] = {}
    total = len(wanted) * len(examples) * options.steps
    with step_bar(total) as bar:
        for name in wanted:
            bar.set_description(HEADS[name].title)
            results[name] = _fused(pipe, examples, _settings(name, options), options, bar.update)
    return results


def _settings(name: str, options: DemoOptions) -> Settings:
    if name == "full":
        return options.settings.replace(show_mask=True)
    return options.settings.replace(fusion=name, inject=False, show_mask=False)


def _fused(
    pipe: Any,
    examples: Sequence[Example],
    settings: Settings,
    options: DemoOptions,
    on_step: Callable[[int], Any],
) -> Result:
    """Every example under `settings`: in one batch, or one per word where the word matters."""
    reads = settings.show_mask and settings.mask_source == "word"
    own_words = reads and not settings.foreground_word
    numbered = sorted(enumerate(examples), key=lambda e: e[1].word if own_words else "")
    pictures: dict[int, Tensor] = {}
    masks: dict[int, Tensor | None] = {}
    summaries: list[str] = []
    for word, members in groupby(numbered, key=lambda e: e[1].word if own_words else ""):
        numbers, group = zip(*members, strict=True)
        chosen = settings.replace(foreground_word=word) if word else settings
        conditions = [
            torch.stack([getattr(example, name) for example in group]) for name in CONDITIONS
        ]
        with cross_controlnet(pipe, chosen) as control:
            made = generate(
                pipe,
                [example.prompt for example in group],
                [example.seed for example in group],
                conditions,
                steps=options.steps,
                guidance_scale=options.guidance_scale,
                negative_prompt=options.negative_prompt,
                on_step=on_step,
                control_modes=options.control_modes,
            )
        session = control.session
        if session is None or control.error is not None:
            cause = control.error or "the pipeline made no generation"
            raise DemoError(f"the method failed and the units were summed: {cause}")
        mask = session.place.mask
        for n, number in enumerate(numbers):
            pictures[number] = made[n]
            masks[number] = None if mask is None else mask[n if len(mask) > 1 else 0]
        summaries.append(control.summary())
    order = range(len(examples))
    return Result(
        torch.stack([pictures[n] for n in order]),
        [masks[n] for n in order],
        summaries[0] if len(set(summaries)) == 1 else f"{summaries[0]} (and so on)",
    )


def _figure(
    examples: Sequence[Example], results: dict[str, Result], options: DemoOptions
) -> Image.Image:
    settings = options.settings
    measured = all(example.object_mask is not None for example in examples)
    rows = []
    for number, example in enumerate(examples):
        pictures, notes = [], []
        for name in options.columns:
            note = ""
            if name in CONDITIONS:
                shown = to_image(getattr(example, name))
            elif name == "mask":
                full = results["full"]
                shown = overlay(to_image(full.pictures[number]), full.masks[number])
                note = "none" if full.masks[number] is None else ""
            else:
                picture = results[name].pictures[number]
                shown = to_image(picture)
                if example.object_mask is not None:
                    note = f"{float(object_iou(picture[None], example.object_mask[None])):.2f}"
            pictures.append(shown)
            notes.append(note)
        word = settings.foreground_word or example.word
        below = [f"foreground: {word}"] if word else []
        below += ["RANDOM WEIGHTS"] if options.random_weights else []
        rows.append(Row(example.prompt, "; ".join(below), pictures, notes))
    return draw_figure(
        [_head(name, settings) for name in options.columns],
        rows,
        _footer(options, measured),
        cell=192 if rows[0].pictures[0].width < 128 else 256,
    )


def _head(name: str, settings: Settings) -> Column:
    if name == "full" and (settings.fusion != "pix+channel" or not settings.inject):
        injection = "injection" if settings.inject else "no injection"
        return Column("Your settings", f"{settings.fusion}, {injection}", "Cross-ControlNet")
    return HEADS[name]


def _footer(options: DemoOptions, measured: bool) -> str:
    settings = options.settings
    source = "" if settings.mask_source == "word" else f" ({settings.mask_source} mask)"
    sampler = "Flow-matching Euler" if options.family == "flux" else "UniPC"
    parts = [
        f"{sampler}, {options.steps} steps, guidance {options.guidance_scale:g}, "
        f"seed {options.seed}",
        f"delta {settings.delta:g}",
    ]
    if settings.inject:
        parts.append(f"KV-Injection{source} from step {settings.start_step}")
    text = "; ".join(parts) + "."
    if options.random_weights:
        text = f"{_random_warning(options)} {text}"
    if measured:
        text += " Below each picture: IoU of its object with the outline's."
    return text


def _random_warning(options: DemoOptions) -> str:
    return (
        f"RANDOM WEIGHTS: a tiny {FAMILIES[options.family].title} that was never trained. This "
        "shows that the method runs there, not that it looks good."
    )


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
        return _random(family).to(place)
    title = FAMILIES[family].title
    if controlnets is None or len(controlnets) < 2:
        raise ModelError(f"{title} comes with no ControlNets: name two or more of your own")
    kind, net_kind, half = _KINDS[family]
    dtype = torch.float32 if place.type == "cpu" else half
    nets = [load_part(net_kind, name, torch_dtype=dtype) for name in controlnets]
    pipe = load_part(kind, model, controlnet=nets, torch_dtype=dtype)
    try:
        check_belonging(pipe)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{model} cannot be used as {title}: {error}") from error
    if (found := family_of(pipe)) != family:
        raise ModelError(f"{model} is {FAMILIES[found].title}; expected {title}")
    if not is_flux(pipe):
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place, dtype)


def _random(family: str) -> Any:
    # Only a clone has them; the benchmarks and the tests are what they are for.
    try:
        from benchmarks.random_models import random_flux, random_sdxl
    except ModuleNotFoundError as error:
        title = FAMILIES[family].title
        raise ModelError(
            f"{title} needs a --model; a tiny random one is made in a clone of the repository only"
        ) from error
    return random_flux() if family == "flux" else random_sdxl()

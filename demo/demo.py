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
from lib_ccn.settings import Settings, SettingsError, fields
from lib_ccn.webui.pictures import Front, fronts_of

from .command_line import OutputError, prepare_file
from .demo_model import (
    ModelError,
    fitting,
    generate,
    is_flux,
    load_part,
    load_pipeline,
    native_size,
    usable_device,
)
from .examples import Example, bundled_examples, two_object_examples
from .figures import Column, Row, draw_figure, places_image, to_image
from .metrics import object_iou
from .options import CONDITIONS, DemoOptions
from .progress import step_bar

HEADS = {
    "foreground": Column("Foreground", "condition", "Conditions"),
    "background": Column("Background", "condition", "Conditions"),
    "sum": Column("Plain sum", "as usual", "Baselines"),
    "mean": Column("Mean", "of the units", "Baselines"),
    "max": Column("MaxFusion", "output rule", "Baselines"),
    "pix": Column("PixFusion", "per pixel", "Cross-ControlNet"),
    "pix+channel": Column("+ ChannelFusion", "middle residual", "Cross-ControlNet"),
    "layers": Column("Layers", "each its place", "Ours"),
    "full": Column("+ KV-Injection", "full method", "Cross-ControlNet"),
    "mask": Column("Mask", "at the last step", "Cross-ControlNet"),
}
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
    """One way of fusing, for every example: pictures [B, 3, H, W], the places in front."""

    pictures: Tensor
    fronts: list[list[Front]]
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
        if options.controlnets is None:
            pipe = fitting(pipe, examples[0])
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
    if options.prompt is None or options.background is None:
        chosen = two_object_examples if options.objects > 1 else bundled_examples
        examples = [_scaled(example, size) for example in chosen(options.seed)]
        if options.random_weights:  # there is no object to be measured
            return [replace(example, object_mask=None) for example in examples]
        return examples
    first, *others, last = (
        _read_image(path, size) for path in (*options.foregrounds, options.background)
    )
    further = tuple(("", condition) for condition in others)
    return [Example(options.prompt, "", first, last, options.seed, further=further)]


def _scaled(example: Example, size: tuple[int, int]) -> Example:
    """The example at another size; there is no mask to measure with there."""
    if example.foreground.shape[-2:] == (size[1], size[0]):
        return example

    def scaled(image: Tensor) -> Tensor:
        wanted = (size[1], size[0])
        return F.interpolate(image[None], size=wanted, mode="bilinear", antialias=True)[0]

    return replace(
        example,
        foreground=scaled(example.foreground),
        background=scaled(example.background),
        further=tuple((word, scaled(outline)) for word, outline in example.further),
        object_mask=None,
    )


def _read_image(path: Path, size: tuple[int, int]) -> Tensor:
    try:
        return to_condition(read_picture(path, size), size)
    except ImageError as error:
        raise DemoError(f"{path} is no image that can be read: {error}") from error


def _generate_all(
    pipe: Any, examples: Sequence[Example], options: DemoOptions
) -> dict[str, Result]:
    """What each wanted column needs, by its name; the mask comes with another one."""
    wanted = [name for name in HEADS if name in options.columns and name not in CONDITIONS]
    if "mask" in wanted:
        masked = _masked(examples)
        wanted = [*(name for name in wanted if name not in (masked, "mask")), masked]
    results: dict[str, Result] = {}
    total = len(wanted) * len(examples) * options.steps
    with step_bar(total) as bar:
        for name in wanted:
            bar.set_description(HEADS[name].title)
            results[name] = _fused(pipe, examples, _settings(name, options), options, bar.update)
    return results


def _masked(examples: Sequence[Example]) -> str:
    """The column whose places in front are shown."""
    return "layers" if examples[0].further else "full"


def _settings(name: str, options: DemoOptions) -> Settings:
    if name == "full":
        return options.settings.replace(show_mask=True)
    if name == "layers":
        return options.settings.replace(fusion=name, inject=False, show_mask=True)
    return options.settings.replace(fusion=name, inject=False, show_mask=False)


def _fused(
    pipe: Any,
    examples: Sequence[Example],
    settings: Settings,
    options: DemoOptions,
    on_step: Callable[[int], Any],
) -> Result:
    """Every example under `settings`: in one batch, or one per word where the word matters."""

    def who(example: Example) -> dict[str, Any]:
        """What the example says of who is in front, where the settings say nothing."""
        unsaid = not settings.foreground_word and not settings.layers
        if not (settings.show_mask and settings.mask_source == "word" and unsaid):
            return {}
        if example.further:
            return {"layers": example.layers, "foreground_unit": "auto"}
        return {"foreground_word": example.word}

    def key(numbered: tuple[int, Example]) -> str:
        return str(who(numbered[1]))

    pictures: dict[int, Tensor] = {}
    fronts: dict[int, list[Front]] = {}
    summaries: list[str] = []
    for _who, members in groupby(sorted(enumerate(examples), key=key), key=key):
        numbers, group = zip(*members, strict=True)
        with cross_controlnet(pipe, settings.replace(**who(group[0]))) as control:
            made = generate(
                pipe,
                [example.prompt for example in group],
                [example.seed for example in group],
                [torch.stack(units) for units in zip(*(e.conditions for e in group), strict=True)],
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
        for n, number in enumerate(numbers):
            pictures[number] = made[n]
            fronts[number] = fronts_of(session, n)
        summaries.append(control.summary())
    order = range(len(examples))
    return Result(
        torch.stack([pictures[n] for n in order]),
        [fronts[n] for n in order],
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
            if name == "foreground":
                pictures += [to_image(condition) for condition in example.conditions[:-1]]
                notes += [""] * (len(example.further) + 1)
                continue
            if name == "background":
                shown = to_image(example.background)
            elif name == "mask":
                found = results[_masked(examples)]
                shown = places_image(to_image(found.pictures[number]), found.fronts[number])
                note = "" if found.fronts[number] else "none"
            else:
                picture = results[name].pictures[number]
                shown = to_image(picture)
                if example.object_mask is not None:
                    note = f"{float(object_iou(picture[None], example.object_mask[None])):.2f}"
            pictures.append(shown)
            notes.append(note)
        word = settings.foreground_word or example.word
        if example.further:
            word = fields()["layers"].to_infotext(settings.layers) or example.layers
        below = [f"{'layers' if example.further else 'foreground'}: {word}"] if word else []
        below += ["RANDOM WEIGHTS"] if options.random_weights else []
        rows.append(Row(example.prompt, "; ".join(below), pictures, notes))
    heads = [head for name in options.columns for head in _heads(name, settings, examples[0])]
    return draw_figure(
        heads,
        rows,
        _footer(options, measured, bool(examples[0].further)),
        cell=192 if rows[0].pictures[0].width < 128 else 256,
    )


def _heads(name: str, settings: Settings, example: Example) -> list[Column]:
    """The headings of a column; the conditions of several objects have one each."""
    count = len(example.further) + 1
    if name == "foreground" and count > 1:
        return [replace(HEADS[name], title=f"Object {number}") for number in range(1, count + 1)]
    return [_head(name, settings)]


def _head(name: str, settings: Settings) -> Column:
    if name == "full" and (settings.fusion != "pix+channel" or not settings.inject):
        injection = "injection" if settings.inject else "no injection"
        return Column("Your settings", f"{settings.fusion}, {injection}", "Cross-ControlNet")
    return HEADS[name]


def _footer(options: DemoOptions, measured: bool, several: bool) -> str:
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
    if measured and several:
        text += (
            " Below each picture: IoU of its objects with the outlines', whatever their colours."
        )
    elif measured:
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
    """Load a pipeline of that family with several ControlNets; the bundled model has three.

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
        return load_pipeline(model, controlnets, device, several=True)
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

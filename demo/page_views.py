"""What the page shows of an outcome: mask, winners, legend, notes."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lib_ccn.fusion import AVERAGED
from lib_ccn.winners import AVERAGED_COLOUR, COLOURS

from .examples import Example
from .figure import enlarged, overlay, to_image
from .page_record import Layer, Record
from .page_run import Outcome, Progress

WIDTH = 512


def shown_picture(picture: Image.Image | None) -> Image.Image | None:
    """A picture at the page's size."""
    return None if picture is None else enlarged(picture, WIDTH)


def mask_view(outcome: Outcome, step: int) -> tuple[Image.Image | None, str]:
    """The mask over the picture at a step, and what there is to say."""
    settings, record = outcome.order.settings, outcome.record
    if outcome.fused is None or settings is None:
        return None, "The method was off."
    mask = record.masks.get(step)
    if mask is None:
        return shown_picture(overlay(outcome.fused, None)), (
            f"Step {step}: no mask yet; it is read from the attention of the step before."
            if settings.mask_source == "word"
            else f"Step {step}: no mask."
        )
    share = float(mask.float().mean())
    start = settings.at_steps(outcome.order.steps).injection_start
    injects = settings.inject and step >= start
    use = "used by KV-Injection" if injects else "not used yet" if settings.inject else "not used"
    return (
        overlay(enlarged(outcome.fused, WIDTH), mask),
        f"Step {step}: {share:.0%} of the picture is foreground; {use}.",
    )


def winner_view(record: Record, step: int, layer: int, width: int = WIDTH) -> Image.Image | None:
    """Who won in a layer at a step: a colour per unit, grey where units were averaged."""
    decided = record.decisions.get(step)
    if decided is None or not 0 <= layer < len(decided):
        return None
    return decision_image(decided[layer]).resize((width, width), Image.Resampling.NEAREST)


def decision_image(decided: Tensor) -> Image.Image:
    """Decisions [h, w], or [C] laid out in rows, in colours."""
    if decided.ndim == 1:
        columns = math.ceil(math.sqrt(len(decided)))
        rows = math.ceil(len(decided) / columns)
        padded = decided.new_full((rows * columns,), len(COLOURS))
        padded[: len(decided)] = decided
        decided = padded.view(rows, columns)
    colours = torch.tensor([*COLOURS, (255, 255, 255), AVERAGED_COLOUR]).float() / 255
    index = torch.where(decided == AVERAGED, len(COLOURS) + 1, decided.long())
    return to_image(colours[index].movedim(-1, 0))


def layer_name(layer: Layer, by_channel: bool) -> str:
    """A layer in a few words."""
    size = f"{layer.width}x{layer.height}"
    if layer.is_middle:
        return f"middle, {layer.channels} channels" if by_channel else f"middle, {size}"
    return f"{layer.number}: {size}"


def by_channel(outcome: Outcome, layer: int) -> bool:
    """Whether ChannelFusion decides in that layer."""
    settings, layers = outcome.order.settings, outcome.record.layers
    is_middle = 0 <= layer < len(layers) and layers[layer].is_middle
    return settings is not None and settings.fusion == "pix+channel" and is_middle


def winner_note(outcome: Outcome, step: int, layer: int) -> str:
    """The legend of a winner map, with each one's share, as HTML."""
    settings, record = outcome.order.settings, outcome.record
    decided = record.decisions.get(step)
    if settings is None or decided is None or not 0 <= layer < len(decided):
        return ""
    values, what = decided[layer], "channels" if by_channel(outcome, layer) else "places"
    entries = [
        (COLOURS[place % len(COLOURS)], f"{unit.number}: {name}", values == place)
        for place, (unit, name) in enumerate(zip(outcome.order.units, outcome.names, strict=True))
    ]
    entries.append((AVERAGED_COLOUR, "averaged, as they agree", values == AVERAGED))
    shown = "".join(
        f'<span class="ccn-key"><i style="background: rgb{colour}"></i>'
        f"{html.escape(name)} <b>{float(which.float().mean()):.0%}</b></span>"
        for colour, name, which in entries
    )
    name = html.escape(layer_name(record.layers[layer], by_channel(outcome, layer)))
    text = f"Residual {name}, step {step}; shares of its {what}."
    if by_channel(outcome, layer):
        text += " ChannelFusion decides here: each square is a channel, not a place."
    elif settings.fusion not in ("pix", "pix+channel"):
        text += f" This is what PixFusion would decide; the rule in use is '{settings.fusion}'."
    return f'<div class="ccn-keys">{shown}</div><div class="ccn-said">{text}</div>'


def layer_gallery(outcome: Outcome, step: int) -> list[tuple[Image.Image, str]]:
    """Every layer's winners at a step, small, with their names."""
    record = outcome.record
    shown = []
    for layer in record.layers:
        image = winner_view(record, step, layer.number, 128)
        if image is not None:
            shown.append((image, layer_name(layer, by_channel(outcome, layer.number))))
    return shown


def notes_view(outcome: Outcome) -> str:
    """What was done, as HTML."""
    parts = [html.escape(outcome.notes), f"{outcome.seconds:.1f} s"]
    return said(" · ".join(parts))


def progress_view(progress: Progress) -> str:
    """The bar and what it stands for, as HTML."""
    return bar(progress.share, f"{progress.stage}: step {progress.step} of {progress.steps}")


def bar(share: float, text: str) -> str:
    """A progress bar as HTML."""
    percent = round(100 * min(max(share, 0), 1))
    return (
        f'<div class="ccn-bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" '
        f'aria-valuemax="100"><div style="width: {percent}%"></div></div>'
        f'<div class="ccn-said">{html.escape(text)}</div>'
    )


def said(escaped: str) -> str:
    """A line of text as HTML."""
    return f'<div class="ccn-said">{escaped}</div>'


def wrong(text: str) -> str:
    """What went wrong, as HTML."""
    return f'<div class="ccn-wrong" role="alert">{html.escape(text)}</div>'


def short_names(nets: Sequence[str]) -> list[str]:
    """ControlNets' names without what they have in common at their start; never empty or alike."""
    found = [name.partition(": ")[2] or name for name in nets]
    short = [name.removeprefix("controlnet-").removeprefix("control_") or name for name in found]
    return [
        name if short.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(short)
    ]


def example_thumbnail(example: Example) -> Image.Image:
    """An example's outline drawn over its map."""
    return to_image(torch.maximum(example.foreground, example.background))

"""What was done to a picture, beside it: one strip for the gallery, made to be read at any size."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from ..outcome import shares
from ..rules import AVERAGED
from ..session import Session
from ..showable import showable
from ..winners import AVERAGED_COLOUR, COLOURS, Decision

PAPER = (255, 255, 255)
INK = (28, 30, 34)
_OPACITY = 0.45

# A panel's shorter side is at least, its longer one at most so many pixels.
SMALLEST, LARGEST = 256, 512
GAP = 8
_NAME = 36  # characters of a unit's name
_HASH = re.compile(r" \[[0-9a-fA-F]{6,64}\]$")
_BITMAP_SIZE = 11

Swatch = tuple[tuple[int, int, int] | None, str]


# A unit's number, as the host counts it, and where it is in front: bool [h, w].
Front = tuple[int, Tensor]


@dataclass
class Result:
    """What there is to show of the pictures of a batch.

    Attributes:
        pictures: how many there are.
        fronts: of each the places of the units in front, front to back; none where no mask is.
        decisions: who won in each, or None.
        said: in words what there is not.
        units: the numbers of those that can be fused.
        rest: what became of a place where nobody won.
    """

    pictures: int = 0
    fronts: list[list[Front]] = field(default_factory=list)
    decisions: list[Decision | None] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    rest: str = "averaged"

    def take(self, session: Session, pictures: int) -> None:
        """Take it from a run that is over; of a hires pass, what is not there stays the first's."""
        self.pictures = pictures
        self.units = [unit.number or 0 for unit in session.units if unit.eligible]
        fronts = [fronts_of(session, picture) for picture in range(pictures)]
        self.fronts = fronts if any(fronts) else self.fronts
        if session.winners is not None:
            decisions = [session.winners.of(picture) for picture in range(pictures)]
            self.decisions = decisions if any(decisions) else self.decisions
        outcome = session.outcome
        self.rest = "added up" if outcome.settings.fusion == "layers" else "averaged"
        if outcome.settings.layers_over_fusion:
            self.rest = "averaged or added up"
        self.said = []
        if not any(self.decisions):
            self.said.append(f"Nobody won: {outcome.fusion()}.")
        if not self.fronts:
            self.said.append("There is no mask.")
        if outcome.settings.inject and not outcome.injected:
            self.said.append("Nothing was injected.")

    @property
    def masks(self) -> list[Tensor | None]:
        """Of each picture where any unit is in front: bool [h, w], or None."""
        found = [[mask for _unit, mask in fronts] for fronts in self.fronts]
        return [functools.reduce(operator.or_, masks) if masks else None for masks in found]

    def strip(self, picture: Image.Image, number: int) -> Image.Image:
        """The strip of picture `number`."""
        decision = self.decisions[number] if number < len(self.decisions) else None
        fronts = self.fronts[number] if number < len(self.fronts) else []
        # A unit has the colour of its place among those that were fused.
        order = self.units if decision is None else [unit.number or 0 for unit in decision.units]
        shown = [(order.index(unit) if unit in order else 0, mask) for unit, mask in fronts]
        return result_strip(picture, shown, decision, self.said, self.rest)


def fronts_of(session: Session, picture: int) -> list[Front]:
    """The places in front of a picture, front to back; none where no mask is."""
    return [
        (next((unit.number or 0 for unit in place.units), 0), mask)
        for place, mask in session.places.shown(picture)
    ]


def result_strip(
    picture: Image.Image,
    fronts: Sequence[Front],
    decision: Decision | None,
    said: Sequence[str] = (),
    rest: str = "averaged",
) -> Image.Image:
    """The picture, the places in front over it, and who won where, side by side, with a legend.

    Args:
        picture: of any size and mode; small ones are enlarged by a whole factor.
        fronts: which colour each has, and its mask, as coarse as the attention that it was read
            from; they do not overlap.
        decision: its maps are enlarged without smoothing.
        said: sentences for the legend.
        rest: what became of a place where nobody won.
    """
    shown = _fitting(picture.convert("RGB"))
    panels = [("picture", shown)]
    if fronts:
        parts = ", ".join(shares([float(mask.float().mean())]) for _unit, mask in fronts)
        panels.append((f"in front: {parts}", fronts_overlay(shown, fronts)))
    legend: list[Swatch] = []
    if decision is not None:
        for place, won in enumerate(decision.maps):
            name = "who won: " if place == 0 else ""
            size = f"{won.shape[1]}x{won.shape[0]}"
            panels.append((name + size, decision_image(won).resize(shown.size, _NEAREST)))
        units = enumerate(decision.units)
        legend += [(COLOURS[n % len(COLOURS)], unit_name(unit.name)) for n, unit in units]
        legend.append((AVERAGED_COLOUR, rest))
        legend.append((None, f"in step {decision.step}, counted from 0"))
    return _laid_out(panels, [*legend, *((None, sentence) for sentence in said)])


def decision_image(decided: Tensor) -> Image.Image:
    """A map of decisions [h, w], a pixel each: a colour per unit, grey where some were averaged."""
    values = np.asarray(decided.cpu(), dtype=np.int64)
    colours = np.array([*COLOURS, AVERAGED_COLOUR], dtype=np.uint8)
    index = np.where(values == AVERAGED, len(COLOURS), values % len(COLOURS))
    return Image.fromarray(colours[index])


def in_one_column(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips below each other."""
    width = max(strip.width for strip in strips)
    column = Image.new("RGB", (width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        column.paste(strip, (0, top))
        top += strip.height
    return column


def unit_name(name: str) -> str:
    """A unit's name without its model's hash; of a long one the middle is left out."""
    text = showable(_HASH.sub("", name))
    if len(text) <= _NAME:
        return text
    return f"{text[: _NAME // 2 - 1]}..{text[1 - _NAME // 2 :]}"


_NEAREST = Image.Resampling.NEAREST


def _fitting(picture: Image.Image) -> Image.Image:
    """The picture at a panel's size."""
    shorter, longer = sorted(picture.size)
    if longer > LARGEST:
        scale = LARGEST / longer
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, min(math.ceil(SMALLEST / shorter), LARGEST // longer))
    return picture.resize((picture.width * factor, picture.height * factor), _NEAREST)


def _grey(mask: Tensor) -> Image.Image:
    return Image.fromarray(np.asarray(mask.cpu(), dtype=np.uint8) * 255)


def fronts_overlay(picture: Image.Image, fronts: Sequence[Front]) -> Image.Image:
    """Each place tinted with its unit's colour and outlined, the rest a little darker."""
    both = picture.point(lambda value: value * 0.7)
    for unit, found in fronts:
        mask = _grey(found).resize(picture.size, _NEAREST)
        tint = Image.new("RGB", picture.size, COLOURS[unit % len(COLOURS)])
        both = Image.composite(Image.blend(picture, tint, _OPACITY), both, mask)
        edge = ImageChops.difference(mask, mask.filter(ImageFilter.MinFilter(3)))
        both = Image.composite(tint, both, edge)
    return both


def _laid_out(panels: Sequence[tuple[str, Image.Image]], legend: Sequence[Swatch]) -> Image.Image:
    """Panels with their captions above, the legend below."""
    width, height = panels[0][1].size
    size = max(14, min(26, width // 19))
    line = round(size * 1.6)
    total = (width + GAP) * len(panels) + GAP
    rows = list(_rows(legend, size, total - 2 * GAP))
    strip = Image.new("RGB", (total, line + height + GAP + line * len(rows)), PAPER)
    for place, (caption, panel) in enumerate(panels):
        left = GAP + place * (width + GAP)
        _write(strip, caption, (left, 0), size, width)
        strip.paste(panel, (left, line))
    for row, entries in enumerate(rows):
        top = line + height + GAP + row * line
        for left, (colour, text) in entries:
            if colour is not None:
                box = (GAP + left, top, GAP + left + size, top + size)
                ImageDraw.Draw(strip).rectangle(box, fill=colour, outline=INK)
            after = 0 if colour is None else size + GAP
            _write(strip, text, (GAP + left + after, top), size, total - 2 * GAP - left - after)
    return strip


def _rows(legend: Sequence[Swatch], size: int, width: int) -> Iterator[list[tuple[int, Swatch]]]:
    """The legend's entries in rows of `width`, each with where it begins."""
    row: list[tuple[int, Swatch]] = []
    left = 0
    for colour, text in legend:
        wide = _text_image(text, size).width + (0 if colour is None else size + GAP)
        if row and left + wide > width:
            yield row
            row, left = [], 0
        row.append((left, (colour, text)))
        left += wide + 3 * GAP
    if row:
        yield row


def _write(sheet: Image.Image, text: str, place: tuple[int, int], size: int, room: int) -> None:
    """Write a line; what does not fit into `room` pixels is cut off."""
    ink = _text_image(text, size)
    ink = ink.crop((0, 0, min(ink.width, max(room, 1)), ink.height))
    sheet.paste(Image.new("RGB", ink.size, INK), place, ink)


def _text_image(text: str, size: int) -> Image.Image:
    """A line of text as a mask "L". Pillow's own font has no letters but the Western ones."""
    text = text.encode("latin-1", "backslashreplace").decode("latin-1")
    factor = 1
    try:
        font = ImageFont.load_default(size)  # type: ignore[call-arg, unused-ignore]
    except (TypeError, ImportError):  # before Pillow 10.1, or without FreeType: a bitmap
        font = ImageFont.load_default()
        factor = max(1, round(size / _BITMAP_SIZE))
    box = font.getbbox(text or " ")
    image = Image.new("L", (math.ceil(box[2]) + 1, math.ceil(box[3]) + 1))
    ImageDraw.Draw(image).text((0, 0), text, 255, font)
    return image.resize((image.width * factor, image.height * factor), _NEAREST)

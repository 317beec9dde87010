"""Means with their intervals as a figure; Pillow alone, which the project has anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .stats import Estimate

PAPER, INK, GREY, RULE, ACCENT = "white", (28, 30, 34), (112, 117, 125), (226, 228, 232), "#1f6fb2"
_WIDTH, _ROW, _LABEL, _MARGIN, _HEAD, _FOOT = 620, 30, 270, 22, 62, 34


@dataclass(frozen=True)
class Panel:
    """One measure of several methods.

    Attributes:
        title: above the panel.
        subtitle: the measure.
        points: label and mean of each method, top to bottom (of a line: left to right).
        line: the labels are values of one setting, left to right, joined by a line.
        digits: after the point, in the axis.
    """

    title: str
    subtitle: str
    points: Sequence[tuple[str, Estimate]]
    line: bool = False
    digits: int = 3


def chart(panels: Sequence[Panel], columns: int = 2) -> Image.Image:
    """The panels in rows of `columns`."""
    rows = [panels[n : n + columns] for n in range(0, len(panels), columns)]
    heights = [max(_height(panel) for panel in row) for row in rows]
    width = min(columns, len(panels))
    sheet = Image.new("RGB", (width * _WIDTH, sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for n, panel in enumerate(row):
            (_draw_line if panel.line else _draw_rows)(pen, panel, n * _WIDTH, top, height)
        top += height
    return sheet


def _height(panel: Panel) -> int:
    body = 230 if panel.line else _ROW * len(panel.points)
    return _HEAD + body + _FOOT + _MARGIN


def ticks(low: float, high: float, steps: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most so many steps apart."""
    span = max(high - low, 1e-9)
    step = next(
        base * 10**power
        for power in range(-9, 10)
        for base in (1, 2, 5)
        if span / (base * 10**power) <= steps
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _range(panel: Panel) -> tuple[float, float]:
    low = min(e.low for _, e in panel.points)
    high = max(e.high for _, e in panel.points)
    room = 0.06 * (high - low) or 10.0**-panel.digits
    return low - room, high + room


def _heads(pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    pen.text((left + _MARGIN, top + 10), panel.title, INK, _font(17))
    pen.text((left + _MARGIN, top + 34), panel.subtitle, GREY, _font(14))


def _draw_rows(pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int, height: int) -> None:
    _heads(pen, panel, left, top)
    low, high = _range(panel)
    start, end = left + _LABEL, left + _WIDTH - _MARGIN
    bottom = top + _HEAD + _ROW * len(panel.points)

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    for value in ticks(low, high):
        pen.line((place(value), top + _HEAD - 4, place(value), bottom), RULE)
        pen.text((place(value), bottom + 4), _number(value, panel), GREY, _font(13), anchor="ma")
    for n, (label, found) in enumerate(panel.points):
        y = top + _HEAD + _ROW * n + _ROW // 2
        pen.text((start - 10, y), _short(label, _LABEL - _MARGIN), INK, _font(14), anchor="rm")
        pen.line((place(found.low), y, place(found.high), y), ACCENT, 3)
        x = place(found.mean)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), ACCENT)


def _draw_line(pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int, height: int) -> None:
    _heads(pen, panel, left, top)
    low, high = _range(panel)
    start, end = left + 80, left + _WIDTH - 2 * _MARGIN
    upper, lower = top + _HEAD, top + height - _FOOT - _MARGIN

    def place(value: float) -> float:
        return lower - (value - low) / (high - low) * (lower - upper)

    for value in ticks(low, high):
        pen.line((start - 12, place(value), end + 12, place(value)), RULE)
        pen.text((start - 18, place(value)), _number(value, panel), GREY, _font(13), anchor="rm")
    gap = (end - start) / max(1, len(panel.points) - 1)
    spots = [(start + n * gap, place(e.mean)) for n, (_, e) in enumerate(panel.points)]
    pen.line(spots, ACCENT, 2)
    for (x, y), (label, found) in zip(spots, panel.points, strict=True):
        pen.line((x, place(found.low), x, place(found.high)), ACCENT, 3)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), ACCENT)
        pen.text((x, lower + 8), label, INK, _font(14), anchor="ma")


def _number(value: float, panel: Panel) -> str:
    text = f"{value:.{panel.digits}f}".rstrip("0").rstrip(".")
    return text if text not in ("", "-0") else "0"


def _short(label: str, width: int) -> str:
    """The label, cut where it is wider than `width` pixels."""
    if _font(14).getlength(label) <= width:
        return label
    while label and _font(14).getlength(label + "...") > width:
        label = label[:-1]
    return label.rstrip(" ,") + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

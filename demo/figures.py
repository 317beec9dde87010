"""Pictures of tensors, and a table of them, drawn as a figure in a paper would be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from PIL.ImageFont import FreeTypeFont
from PIL.ImageFont import ImageFont as BitmapFont
from torch import Tensor

from lib_ccn.rules import AVERAGED
from lib_ccn.webui.pictures import Front, fronts_overlay
from lib_ccn.winners import AVERAGED_COLOUR, COLOURS

PAPER = (255, 255, 255)
INK = (28, 30, 34)
GREY = (112, 117, 125)
RULE = (196, 200, 206)
ACCENT = (214, 48, 84)

Font = FreeTypeFont | BitmapFont


@dataclass(frozen=True)
class Column:
    """A column's heading; neighbours with the same `group` stand under one rule."""

    title: str
    subtitle: str = ""
    group: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its label, a smaller line under it, its pictures and a note under each ("" none)."""

    label: str
    sublabel: str
    pictures: Sequence[Image.Image]
    notes: Sequence[str] = ()


def to_image(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in [0, 1] as an RGB image."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels), "RGB")


def overlay(picture: Image.Image, mask: Tensor | None) -> Image.Image:
    """The picture with everything but `mask` (bool [h, w]) faded and its edge drawn."""
    faded = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.72)
    if mask is None:
        return faded
    grid = Image.fromarray((mask.cpu().numpy() * 255).astype(np.uint8), "L")
    cover = grid.resize(picture.size, Image.Resampling.NEAREST)
    edge = ImageChops.difference(cover, cover.filter(ImageFilter.MinFilter(3)))
    shown = Image.composite(picture, faded, cover)
    return Image.composite(Image.new("RGB", picture.size, ACCENT), shown, edge)


def places_image(picture: Image.Image, fronts: Sequence[Front]) -> Image.Image:
    """The picture with the places of the units in front over it.

    One is shown by what is left of the rest, several each in its unit's colour.
    """
    if len(fronts) < 2:
        return overlay(picture, fronts[0][1] if fronts else None)
    return fronts_overlay(enlarged(picture, 192), fronts)


def heat_image(values: Tensor) -> Image.Image:
    """A map [h, w] in [0, 1] from white to ink."""
    amount = values.clamp(0, 1).cpu()[None]
    low, high = (torch.tensor(c).view(3, 1, 1) / 255 for c in (PAPER, (20, 42, 84)))
    return to_image(low + (high - low) * amount)


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


def enlarged(picture: Image.Image, width: int) -> Image.Image:
    """Small pictures enlarged by a whole factor to about `width`, large ones reduced to it."""
    if picture.width <= width:
        factor = max(1, round(width / picture.width))
        size = (picture.width * factor, picture.height * factor)
        return picture.resize(size, Image.Resampling.NEAREST)
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def draw_figure(
    columns: Sequence[Column], rows: Sequence[Row], footer: str = "", cell: int = 192
) -> Image.Image:
    """Lay out `rows` under the headings of `columns`; every picture is about `cell` wide."""
    pictures = [[enlarged(p, cell) for p in row.pictures] for row in rows]
    width = max(p.width for row in pictures for p in row)
    height = max(p.height for row in pictures for p in row)
    big, small = figure_font(width * 0.088), figure_font(width * 0.072)
    gap, margin = round(width * 0.06), round(width * 0.16)
    label_width = round(width * 0.95)
    line, small_line = _line_height(big), _line_height(small)
    note_height = small_line if any(any(row.notes) for row in rows) else 0
    grouped = any(c.group for c in columns)
    head = (line + gap if grouped else 0) + line + small_line + gap
    step = (width + gap, height + note_height + gap)
    left, top = margin + label_width + 2 * gap, margin + head
    total_width = left + len(columns) * step[0] - gap + margin
    footer_lines = _wrapped(footer, small, total_width - 2 * margin)
    foot = len(footer_lines) * small_line + gap if footer else 0
    sheet = Image.new("RGB", (total_width, top + len(rows) * step[1] + foot + margin), PAPER)
    pen = ImageDraw.Draw(sheet)

    _draw_heads(pen, columns, left, margin, step[0], width, (big, small), grouped, gap)
    for r, row in enumerate(rows):
        y = top + r * step[1]
        _draw_label(pen, row, margin, y, label_width, height, (big, small))
        for c, picture in enumerate(pictures[r]):
            x = left + c * step[0]
            sheet.paste(picture, (x, y))
            pen.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=RULE)
            if c < len(row.notes) and row.notes[c]:
                where = (x + width // 2, y + height + small_line // 6)
                pen.text(where, row.notes[c], GREY, small, anchor="ma")
    for n, text in enumerate(footer_lines):
        y = top + len(rows) * step[1] + gap // 2 + n * small_line
        pen.text((margin, y), text, GREY, small)
    return sheet


def contact_sheet(rows: Sequence[tuple[str, Tensor]], cell: int = 128) -> Image.Image:
    """Named rows of pictures [B, 3, H, W] below each other."""
    longest = max(len(pictures) for _, pictures in rows)
    columns = [Column(str(number)) for number in range(longest)]
    return draw_figure(
        columns,
        [Row(name, "", [to_image(p) for p in torch.unbind(pictures)]) for name, pictures in rows],
        cell=cell,
    )


def _draw_heads(
    pen: ImageDraw.ImageDraw,
    columns: Sequence[Column],
    left: int,
    top: int,
    step: int,
    width: int,
    fonts: tuple[Font, Font],
    grouped: bool,
    gap: int,
) -> None:
    big, small = fonts
    line = _line_height(big)
    if grouped:
        numbered = groupby(enumerate(columns), key=lambda item: item[1].group)
        for name, members in numbered:
            places = [number for number, _ in members]
            start, end = left + places[0] * step, left + places[-1] * step + width
            if name:
                pen.text(((start + end) // 2, top), name, INK, big, anchor="ma")
                y = top + line + gap // 3
                pen.line((start, y, end, y), RULE, max(1, width // 96))
        top += line + gap
    for number, column in enumerate(columns):
        centre = left + number * step + width // 2
        pen.text((centre, top), column.title, INK, big, anchor="ma")
        pen.text((centre, top + line), column.subtitle, GREY, small, anchor="ma")


def _draw_label(
    pen: ImageDraw.ImageDraw,
    row: Row,
    left: int,
    top: int,
    width: int,
    height: int,
    fonts: tuple[Font, Font],
) -> None:
    lines = [(text, INK, fonts[0]) for text in _wrapped(row.label, fonts[0], width)]
    lines += [(text, GREY, fonts[1]) for text in _wrapped(row.sublabel, fonts[1], width)]
    room = max(1, height // _line_height(fonts[0]))
    if len(lines) > room:
        lines = [*lines[: room - 1], ("...", INK, fonts[0])]
    y = top + (height - sum(_line_height(font) for _, _, font in lines)) // 2
    for text, colour, font in lines:
        pen.text((left + width, y), text, colour, font, anchor="ra")
        y += _line_height(font)


def figure_font(size: float) -> Font:
    """The figures' font, of at least 10 pixels."""
    return ImageFont.load_default(max(10, round(size)))


def _line_height(font: Font) -> int:
    box = font.getbbox("Ag")
    return round(1.45 * (box[3] - box[1]))


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

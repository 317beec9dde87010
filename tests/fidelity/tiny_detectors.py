"""Photographs that are drawn, and detectors that know how: no weights are needed.

A person is red, in front of a street or hills; classes are 0 wall, 1 person, 2 sky.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from benchmarks.fidelity.detectors import Detectors

PERSON = (210, 40, 40)


def draw_photographs(folder: Path, count: int, person: bool, side: int = 96) -> None:
    """So many photographs, not square; the last of several persons is a speck."""
    folder.mkdir(parents=True)
    for n in range(count):
        dice = random.Random(n + 100 * person)
        width, height = (side * 4 // 3, side) if n % 2 else (side, side * 4 // 3)
        horizon = int(height * dice.uniform(0.3, 0.6))
        picture = Image.new("RGB", (width, height), (90 + n, 160, 230 - n))
        pen = ImageDraw.Draw(picture)
        pen.rectangle((0, horizon, width, height), (110, 110 + n, 90))
        if person:
            speck = count > 1 and n == count - 1
            tall = 3 if speck else int(height * dice.uniform(0.4, 0.6))
            x, y = width // 2, (height - tall) // 2
            pen.rectangle((x - tall // 6, y, x + tall // 6, y + tall), PERSON)
            pen.ellipse((x - tall // 8, y - tall // 8, x + tall // 8, y + tall // 8), PERSON)
        picture = picture.filter(ImageFilter.GaussianBlur(0.4))
        picture.save(folder / f"{n:03d}.jpg", quality=95)


def classes(picture: Image.Image) -> Tensor:
    """Red is a person; of the rest, what is more blue than green is sky."""
    red, green, blue = torch.from_numpy(np.array(picture)).long().movedim(-1, 0)
    found = torch.where(blue > green + 20, 2, 0)
    return torch.where((red > 150) & (green < 100), 1, found)


def caption(picture: Image.Image) -> str:
    """What is drawn."""
    seen = classes(picture)
    return "a man on a street" if bool((seen == 1).any()) else "hills under a blue sky"


def _pose(picture: Image.Image) -> Image.Image:
    rows, columns = np.nonzero((classes(picture) == 1).numpy())
    made = Image.new("RGB", picture.size)
    if len(rows):
        x = int(columns.mean())
        pen = ImageDraw.Draw(made)
        pen.line((x, int(rows.min()), x, int(rows.max())), (0, 0, 255), 2)
        pen.line((int(columns.min()), int(rows.mean()), int(columns.max()), int(rows.mean())),
                 (255, 0, 0), 2)  # fmt: skip
    return made


def _depth(picture: Image.Image) -> Image.Image:
    ramp = np.linspace(40, 255, picture.height, dtype=np.uint8)[:, None].repeat(picture.width, 1)
    return Image.fromarray(ramp)


def _edges(picture: Image.Image) -> Image.Image:
    return picture.convert("L").filter(ImageFilter.FIND_EDGES)


def detectors() -> Detectors:
    """All five kinds."""
    made = {"pose": _pose, "depth": _depth, "canny": _edges, "hed": _edges}
    return Detectors(classes, 1, caption, made)


def nothing() -> str:
    """What is no Detectors."""
    return "nothing"

"""Rooms, streets and hills that know nobody: depth maps, segmentation maps and outlines.

A place is painted from back to front out of surfaces. Each has a class of ADE20K, whose colour it
gets in a segmentation map, and a nearness, which over a flat surface changes linearly with the
place in the picture (of a camera's perspective this is exact for the reciprocal of depth, which is
what MiDaS and its kin estimate). In a depth map white is near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]

# Classes of ADE20K by its own number, with the colours of the segmentation maps that ControlNets
# were trained on (Zhou et al., 2017; 150 classes, of which these are used).
ADE20K: dict[str, tuple[int, tuple[int, int, int]]] = {
    "wall": (0, (120, 120, 120)),
    "building": (1, (180, 120, 120)),
    "sky": (2, (6, 230, 230)),
    "floor": (3, (80, 50, 50)),
    "tree": (4, (4, 200, 3)),
    "ceiling": (5, (120, 120, 80)),
    "road": (6, (140, 140, 140)),
    "windowpane": (8, (230, 230, 230)),
    "grass": (9, (4, 250, 7)),
    "sidewalk": (11, (235, 255, 7)),
    "door": (14, (8, 255, 51)),
    "mountain": (16, (143, 255, 140)),
    "plant": (17, (204, 255, 4)),
    "curtain": (18, (255, 51, 7)),
    "car": (20, (0, 102, 200)),
    "water": (21, (61, 230, 250)),
    "painting": (22, (255, 6, 51)),
    "sofa": (23, (11, 102, 255)),
    "rug": (28, (255, 9, 92)),
    "lamp": (36, (224, 255, 8)),
    "path": (52, (255, 31, 0)),
    "hill": (68, (255, 102, 0)),
}


@dataclass(frozen=True)
class Surface:
    """A part of a place.

    Attributes:
        kind: its class in `ADE20K`.
        outline: a polygon, as shares of the picture's width and height.
        near, across, down: its nearness is `near + across * x + down * y`.
    """

    kind: str
    outline: Sequence[Point]
    near: float
    across: float = 0.0
    down: float = 0.0


def depth_map(name: str, size: tuple[int, int]) -> Image.Image:
    """A place's depth as an RGB picture in grey, white where it is nearest, black infinitely far.

    Args:
        name: a key of `PLACES`.
        size: (width, height).
    """
    width, height = size
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    nearness = np.zeros((height, width))
    for surface in PLACES[name]:
        plane = surface.near + surface.across * across + surface.down * down
        nearness = np.where(_inside(surface, size), plane, nearness)
    grey = np.rint(nearness / nearness.max() * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def segmentation_map(name: str, size: tuple[int, int]) -> Image.Image:
    """A place's classes in ADE20K's colours; arguments as for `depth_map`."""
    colours = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for surface in PLACES[name]:
        colours[_inside(surface, size)] = ADE20K[surface.kind][1]
    return Image.fromarray(colours)


def outline_map(name: str, size: tuple[int, int]) -> Image.Image:
    """A thing of `THINGS` as an edge detector gives it: thin white lines on black, RGB."""
    width, height = size
    picture = Image.new("L", size)
    draw = ImageDraw.Draw(picture)
    thickness = max(1, round(min(size) / 512))
    for line in THINGS[name]:
        draw.line([(x * width, y * height) for x, y in line], fill=255, width=thickness)
    return picture.convert("RGB")


def _inside(surface: Surface, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = Image.new("1", size)
    points = [(x * size[0], y * size[1]) for x, y in surface.outline]
    ImageDraw.Draw(mask).polygon(points, fill=1)
    return np.asarray(mask)


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _oval(x: float, y: float, half_width: float, half_height: float) -> list[Point]:
    turns = [math.radians(degree) for degree in range(0, 361, 6)]
    return [(x + half_width * math.cos(t), y + half_height * math.sin(t)) for t in turns]


def _ridge(line: Callable[[float], float]) -> list[Point]:
    """Everything below a line that gives a height for each x."""
    return [*((x / 40, line(x / 40)) for x in range(41)), (1.0, 1.0), (0.0, 1.0)]


def _sides(
    half_width: Callable[[float], float], x: float, top: float, bottom: float
) -> list[Point]:
    """The closed outline of something symmetric about `x`; the width is given over 0 to 1."""
    shares = [step / 32 for step in range(33)]
    right = [(x + half_width(s), top + s * (bottom - top)) for s in shares]
    left = [(2 * x - px, py) for px, py in reversed(right)]
    return [*right, *left, right[0]]


def _whole() -> list[Point]:
    return _box(0, 0, 1, 1)


# A box in perspective, whose lines meet at (0.5, 0.42).
_ROOM = (
    Surface("wall", _box(0.25, 0.20, 0.75, 0.60), 0.25),
    Surface("ceiling", [(0.25, 0.20), (0.75, 0.20), (1, 0), (0, 0)], 0.477, down=-1.136),
    Surface("wall", [(0, 0), (0.25, 0.20), (0.25, 0.60), (0, 0.78)], 0.5, across=-1),
    Surface("wall", [(1, 0), (0.75, 0.20), (0.75, 0.60), (1, 0.78)], -0.5, across=1),
    Surface(
        "floor",
        [(0.25, 0.60), (0.75, 0.60), (1, 0.78), (1, 1), (0, 1), (0, 0.78)],
        -0.5834,
        down=1.389,
    ),
    Surface("rug", [(0.30, 0.72), (0.70, 0.72), (0.82, 0.92), (0.18, 0.92)], -0.58, down=1.389),
    Surface("windowpane", _box(0.56, 0.27, 0.70, 0.46), 0.24),
    Surface("curtain", _box(0.535, 0.25, 0.565, 0.56), 0.26),
    Surface("curtain", _box(0.695, 0.25, 0.725, 0.56), 0.26),
    Surface("painting", _box(0.31, 0.29, 0.45, 0.39), 0.255),
    Surface("sofa", _box(0.27, 0.46, 0.50, 0.62), 0.29),
    Surface("sofa", [(0.25, 0.54), (0.29, 0.54), (0.29, 0.66), (0.25, 0.66)], 0.34),
    Surface("sofa", [(0.48, 0.54), (0.52, 0.54), (0.52, 0.66), (0.48, 0.66)], 0.34),
    Surface("sofa", _box(0.25, 0.57, 0.52, 0.66), 0.33),
    Surface("door", [(0.84, 0.27), (0.93, 0.24), (0.93, 0.73), (0.84, 0.665)], -0.5, across=1),
    Surface("lamp", _box(0.148, 0.42, 0.156, 0.735), 0.40),
    Surface("lamp", [(0.125, 0.33), (0.18, 0.33), (0.20, 0.43), (0.105, 0.43)], 0.41),
    Surface("plant", _oval(0.77, 0.53, 0.055, 0.10), 0.32),
    Surface("plant", [(0.75, 0.61), (0.79, 0.61), (0.785, 0.68), (0.755, 0.68)], 0.32),
)
# A street between houses; the horizon is at 0.46.
_STREET = (
    Surface("sky", _whole(), 0.0),
    Surface("building", _box(0.44, 0.30, 0.56, 0.48), 0.05),
    Surface("tree", _oval(0.50, 0.41, 0.045, 0.06), 0.06),
    Surface("sidewalk", [(0.40, 0.48), (0.60, 0.48), (1, 0.96), (1, 1), (0, 1), (0, 0.96)], -0.42,
            down=0.92),
    Surface("road", [(0.455, 0.48), (0.545, 0.48), (0.93, 1), (0.07, 1)], -0.43, down=0.92),
    Surface("building", [(0, 0), (0.20, 0.02), (0.42, 0.31), (0.42, 0.505), (0, 0.96)], 0.46,
            across=-0.98),
    Surface("building", [(1, 0), (0.78, 0.04), (0.58, 0.31), (0.58, 0.505), (1, 0.96)], -0.52,
            across=0.98),
    Surface("windowpane", [(0.04, 0.14), (0.13, 0.19), (0.13, 0.36), (0.04, 0.34)], 0.45,
            across=-0.98),
    Surface("windowpane", [(0.18, 0.22), (0.25, 0.26), (0.25, 0.39), (0.18, 0.37)], 0.45,
            across=-0.98),
    Surface("door", [(0.10, 0.52), (0.19, 0.50), (0.19, 0.755), (0.10, 0.852)], 0.45, across=-0.98),
    Surface("windowpane", [(0.96, 0.14), (0.87, 0.19), (0.87, 0.36), (0.96, 0.34)], -0.53,
            across=0.98),
    Surface("windowpane", [(0.82, 0.22), (0.75, 0.26), (0.75, 0.39), (0.82, 0.37)], -0.53,
            across=0.98),
    Surface("tree", _oval(0.335, 0.38, 0.06, 0.11), 0.16),
    Surface("tree", _box(0.330, 0.46, 0.342, 0.60), 0.16),
    Surface("car", [(0.665, 0.555), (0.69, 0.50), (0.775, 0.50), (0.81, 0.555), (0.83, 0.58),
                    (0.83, 0.665), (0.65, 0.665), (0.65, 0.58)], 0.19),
)  # fmt: skip
# Hills behind each other, a lake and a path.
_HILLS = (
    Surface("sky", _whole(), 0.0),
    Surface(
        "mountain",
        _ridge(lambda x: 0.36 - 0.13 * abs(math.sin(5 * x + 0.6)) - 0.03 * math.sin(17 * x)),
        0.05,
    ),
    Surface("hill", _ridge(lambda x: 0.43 - 0.05 * math.sin(4 * x + 2.2)), 0.10),
    Surface("hill", _ridge(lambda x: 0.50 + 0.06 * math.sin(5 * x + 0.3)), 0.17),
    Surface("grass", _ridge(lambda x: 0.58 - 0.02 * math.sin(4 * x)), -0.46, down=1.2),
    Surface("water", _oval(0.24, 0.635, 0.20, 0.032), -0.46, down=1.2),
    Surface("path", [(0.60, 0.585), (0.63, 0.585), (0.67, 0.70), (0.95, 1), (0.55, 1),
                     (0.62, 0.70)], -0.45, down=1.2),
    Surface("tree", _oval(0.86, 0.47, 0.075, 0.15), 0.33),
    Surface("tree", _box(0.85, 0.58, 0.872, 0.67), 0.33),
    Surface("tree", _oval(0.09, 0.53, 0.035, 0.07), 0.20),
)  # fmt: skip
PLACES: dict[str, tuple[Surface, ...]] = {"room": _ROOM, "street": _STREET, "hills": _HILLS}


def _balloon(share: float) -> float:
    """Half the width of a hot-air balloon's envelope, from its top down."""
    turn = math.sin(math.pi * min(share * 0.94 + 0.001, 1.0) ** 0.72)
    return 0.19 * max(turn, 0.0) ** 0.62


def _vase(share: float) -> float:
    """Half the width of a vase: lip, neck, belly, foot."""
    belly = math.exp(-(((share - 0.52) / 0.24) ** 2))
    return 0.042 + 0.085 * belly + 0.022 * math.exp(-((share / 0.06) ** 2)) + 0.014 * share**8


# Lines of points, as shares of the picture's width and height.
THINGS: dict[str, list[list[Point]]] = {
    "balloon": [
        _sides(_balloon, 0.5, 0.10, 0.60),
        *(
            [(0.5 + part * _balloon(s / 32), 0.10 + s / 64) for s in range(33)]
            for part in (-0.66, -0.25, 0.25, 0.66)
        ),
        [(0.466, 0.585), (0.474, 0.68)],
        [(0.534, 0.585), (0.526, 0.68)],
        [*_box(0.462, 0.68, 0.538, 0.75), (0.462, 0.68)],
        [(0.462, 0.697), (0.538, 0.697)],
    ],
    "vase": [
        _sides(_vase, 0.5, 0.36, 0.88),
        _oval(0.5, 0.36, 0.064, 0.012),
        *([(0.5 - w, y), (0.5 - w / 2, y + 0.012), (0.5, y + 0.016), (0.5 + w / 2, y + 0.012),
           (0.5 + w, y)] for w, y in ((0.062, 0.50), (0.117, 0.585), (0.117, 0.68))),
    ],
}  # fmt: skip

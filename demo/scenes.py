"""The drawn world of the demo model: one object over a landscape of two or three regions.

Everything is drawn in batches from a seeded generator, so that training, the quality gates and the
fidelity benchmark can make as many pictures as they like, and the same ones again. A scene comes
with its caption and its two conditions: the object's outline, and the region map, with the object
as a region of its own or, for a *conflict*, of a landscape that knows no object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64

SHAPES = ("star", "ring", "cross", "heart", "triangle")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.12),
    "yellow": (0.96, 0.88, 0.08),
    "green": (0.08, 0.75, 0.18),
    "cyan": (0.06, 0.84, 0.88),
    "blue": (0.12, 0.18, 0.92),
    "pink": (0.93, 0.14, 0.78),
}
# Muted on purpose: chroma (max - min of R, G, B) tells an object from a landscape, see metrics.py.
REGIONS: dict[str, tuple[float, float, float]] = {
    "sky": (0.72, 0.81, 0.90),
    "hills": (0.47, 0.41, 0.36),
    "field": (0.50, 0.63, 0.38),
    "sand": (0.86, 0.78, 0.60),
    "water": (0.33, 0.46, 0.58),
}
REGION_NAMES = tuple(REGIONS)
REGION_PHRASES = {
    "sky": ("the sky", "a pale sky"),
    "hills": ("hills", "brown hills"),
    "field": ("a field", "a green field"),
    "sand": ("sand", "golden sand"),
    "water": ("water", "blue water"),
}
# Colours of the region map, one per region and the object's last, as in a segmentation palette.
MAP_COLOURS = torch.tensor(
    [
        (0.27, 0.51, 0.71),
        (0.45, 0.27, 0.14),
        (0.42, 0.56, 0.14),
        (0.96, 0.82, 0.40),
        (0.00, 0.16, 0.55),
        (0.86, 0.08, 0.24),
    ]
)
_POLYGON = 40


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes at 64x64; pictures and conditions are float32 in [0, 1].

    Attributes:
        picture: [B, 3, 64, 64].
        outline: [B, 3, 64, 64], the object's outline in white on black.
        region_map: [B, 3, 64, 64], the landscape with the object as a region of its own.
        landscape_map: [B, 3, 64, 64], the same landscape without the object.
        object_mask: bool [B, 64, 64], all False where the scene has no object.
        regions: long [B, 64, 64], indices into `REGION_NAMES`, the object ignored.
        captions: B strings.
        colour: B names of `COLOURS`, "" without an object.
        shape: B names of `SHAPES`, "" without an object.
        named: B tuples of the regions that the caption names, top to bottom.
    """

    picture: Tensor
    outline: Tensor
    region_map: Tensor
    landscape_map: Tensor
    object_mask: Tensor
    regions: Tensor
    captions: list[str]
    colour: list[str]
    shape: list[str]
    named: list[tuple[str, ...]]


def draw(count: int, generator: torch.Generator, object_free: float = 0.12) -> Scenes:
    """Draw `count` scenes.

    Args:
        count: number of scenes, at least 1.
        generator: a CPU generator; the same state gives the same scenes.
        object_free: the share of scenes without an object.
    """
    layout, regions = _landscape(count, generator)
    background = _paint_landscape(regions, generator)

    colours = torch.randint(len(COLOURS), (count,), generator=generator)
    shapes = torch.randint(len(SHAPES), (count,), generator=generator)
    present = torch.rand(count, generator=generator) >= object_free
    distance = _object_distance(shapes, generator)
    coverage = (0.5 - distance * SIZE / 2).clamp(0, 1) * present[:, None, None]
    line = (1.1 - (distance * SIZE / 2).abs()).clamp(0, 1) * present[:, None, None]
    mask = coverage > 0.5

    picture = background + coverage[:, None] * (
        _paint_object(distance, colours, generator) - background
    )
    landscape_map = MAP_COLOURS[regions].movedim(-1, 1)
    region_map = torch.where(mask[:, None], MAP_COLOURS[-1].view(1, 3, 1, 1), landscape_map)

    colour_names, shape_names = list(COLOURS), list(SHAPES)
    captions, colour, shape, named = [], [], [], []
    for b in range(count):
        visible = [REGION_NAMES[r] for r in layout[b]]
        has_object = bool(present[b])
        colour.append(colour_names[int(colours[b])] if has_object else "")
        shape.append(shape_names[int(shapes[b])] if has_object else "")
        caption, mentioned = _caption(colour[b], shape[b], visible, generator)
        captions.append(caption)
        named.append(mentioned)
    return Scenes(
        picture=picture.clamp(0, 1),
        outline=line[:, None].expand(-1, 3, -1, -1).contiguous(),
        region_map=region_map.contiguous(),
        landscape_map=landscape_map.contiguous(),
        object_mask=mask,
        regions=regions,
        captions=captions,
        colour=colour,
        shape=shape,
        named=named,
    )


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _grid() -> tuple[Tensor, Tensor]:
    """x (rightwards) and y (downwards) of the pixel centres in (-1, 1), each [64, 64]."""
    axis = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _landscape(count: int, generator: torch.Generator) -> tuple[list[list[int]], Tensor]:
    """Which regions each scene has, top to bottom, and the index of the region at each pixel."""
    layout = []
    for _ in range(count):
        bands = 2 + int(torch.rand(1, generator=generator) < 0.4)
        chosen = torch.randperm(len(REGION_NAMES), generator=generator)[:bands].tolist()
        # The sky is above everything, hills are above what lies flat.
        layout.append(sorted(chosen, key=lambda r: (0, 1, 2, 2, 2)[r]))
    x, y = _grid()
    regions = torch.empty(count, SIZE, SIZE, dtype=torch.long)
    upper = _uniform(generator, -0.35, 0.45, count)
    amplitude = _uniform(generator, 0.02, 0.11, count, 2)
    frequency = _uniform(generator, 1.5, 5.0, count, 2)
    phase = _uniform(generator, 0, 2 * math.pi, count, 2)
    gap = _uniform(generator, 0.55, 0.75, count)
    for b, bands_of in enumerate(layout):
        wave = amplitude[b, 0] * torch.sin(frequency[b, 0] * x + phase[b, 0]) + amplitude[
            b, 1
        ] * 0.5 * torch.sin(2.3 * frequency[b, 1] * x + phase[b, 1])
        regions[b] = bands_of[0]
        if len(bands_of) == 3:
            first = upper[b] - 0.4
            regions[b][y > first + wave] = bands_of[1]
            regions[b][y > first + gap[b] - 0.6 * wave] = bands_of[2]
        else:
            regions[b][y > upper[b] + wave] = bands_of[1]
    return layout, regions


def _value_noise(count: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    coarse = torch.rand(count, 1, rows, columns, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]


def _paint_landscape(regions: Tensor, generator: torch.Generator) -> Tensor:
    count = regions.shape[0]
    _, y = _grid()
    tint = _uniform(generator, -0.04, 0.04, count, len(REGION_NAMES), 1)
    base = torch.tensor(list(REGIONS.values()))[None] + tint  # [B, regions, 3]
    picture = base[torch.arange(count)[:, None, None], regions].movedim(-1, 1)

    ripple = torch.sin(40 * y + 3 * _value_noise(count, 6, 4, generator))
    textures = (
        0.06 * (y - 0.2) + 0.05 * _value_noise(count, 5, 3, generator),  # sky: paler to the horizon
        0.08 * _value_noise(count, 9, 9, generator),  # hills: rocks
        0.07 * _value_noise(count, 8, 32, generator),  # field: blades
        0.05 * _value_noise(count, 32, 32, generator),  # sand: grains
        0.05 * ripple,  # water: waves
    )
    shade = torch.zeros(count, SIZE, SIZE)
    for index, texture in enumerate(textures):
        shade = torch.where(regions == index, texture.expand_as(shade), shade)
    return picture + shade[:, None]


def _paint_object(distance: Tensor, colours: Tensor, generator: torch.Generator) -> Tensor:
    """The object's colour: a soft light from one side, darker towards its rim."""
    count = distance.shape[0]
    x, y = _grid()
    angle = _uniform(generator, 0, 2 * math.pi, count, 1, 1)
    light = 1.0 + 0.10 * (x * torch.cos(angle) + y * torch.sin(angle))
    rim = 1 - 0.30 * torch.exp(-((distance * SIZE / 2) / 1.6).square())
    base = torch.tensor(list(COLOURS.values()))[colours]
    return base[:, :, None, None] * (light * rim)[:, None]


def _object_distance(shapes: Tensor, generator: torch.Generator) -> Tensor:
    """Signed distance to each scene's object, in units of half the picture; negative inside."""
    count = shapes.shape[0]
    x, y = _grid()
    radius = _uniform(generator, 0.42, 0.66, count)
    reach = (0.95 - radius).clamp(max=0.5)
    centre = (torch.rand(count, 2, generator=generator) * 2 - 1) * reach[:, None]
    turn = _uniform(generator, -math.pi, math.pi, count)
    # Hearts and triangles keep near to upright: turned at will they are hard to name by eye.
    upright = (shapes == SHAPES.index("heart")) | (shapes == SHAPES.index("triangle"))
    turn = torch.where(upright, turn * 0.15, turn)

    outlines = torch.stack([_polygon(name) for name in SHAPES])[shapes]  # [B, 40, 2]
    cos, sin = torch.cos(turn), torch.sin(turn)
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    corners = radius[:, None, None] * (outlines @ rotation.mT) + centre[:, None]
    points = torch.stack([x, y], -1).view(1, -1, 2).expand(count, -1, -1)
    distance = _polygon_distance(points, corners).view(count, SIZE, SIZE)

    ring = (torch.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])) - (
        0.76 * radius[:, None, None]
    )
    ring = ring.abs() - 0.24 * radius[:, None, None]
    return torch.where((shapes == SHAPES.index("ring"))[:, None, None], ring, distance)


def _polygon(name: str) -> Tensor:
    """Corners [40, 2] of a shape of radius 1 around the origin, y downwards."""
    if name == "star":
        angle = torch.arange(10) * math.pi / 5 - math.pi / 2
        radius = torch.where(torch.arange(10) % 2 == 0, 1.0, 0.45)
        corners = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    elif name == "cross":
        a, b = 0.30, 0.92
        quarter = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)]
        corners = torch.tensor(quarter + [(-px, -py) for px, py in quarter])
    elif name == "heart":
        t = torch.arange(_POLYGON) * 2 * math.pi / _POLYGON
        px = 16 * torch.sin(t) ** 3
        py = 13 * torch.cos(t) - 5 * torch.cos(2 * t) - 2 * torch.cos(3 * t) - torch.cos(4 * t)
        corners = torch.stack([px, -py], -1) / 16.5
    else:  # a triangle; the ring is not a polygon and its row is not used
        angle = torch.arange(3) * 2 * math.pi / 3 - math.pi / 2
        corners = torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    missing = _POLYGON - len(corners)
    return torch.cat([corners, corners[-1:].expand(missing, 2)])


def _polygon_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Signed distance [B, P] of points [B, P, 2] to closed polygons [B, V, 2], negative inside."""
    nearest = torch.full(points.shape[:2], math.inf)
    inside = torch.zeros(points.shape[:2], dtype=torch.bool)
    px, py = points.unbind(-1)
    for v in range(corners.shape[1]):
        start, end = corners[:, v, None], corners[:, (v + 1) % corners.shape[1], None]
        edge, offset = end - start, points - start
        length = edge.square().sum(-1).clamp_min(1e-12)
        along = ((offset * edge).sum(-1) / length).clamp(0, 1)
        nearest = torch.minimum(nearest, (offset - edge * along[..., None]).square().sum(-1))
        (ax, ay), (bx, by) = start.unbind(-1), end.unbind(-1)
        straddles = (ay > py) != (by > py)
        crossing = ax + (py - ay) / torch.where(ay == by, 1.0, by - ay) * (bx - ax)
        inside ^= straddles & (px < crossing)
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


def _caption(
    colour: str, shape: str, visible: list[str], generator: torch.Generator
) -> tuple[str, tuple[str, ...]]:
    """A caption and the regions it names; now and then it leaves some of them out."""
    dice = torch.rand(4, generator=generator).tolist()
    named = visible if dice[0] > 0.15 or not shape else visible[-1:]
    phrases = [REGION_PHRASES[r][int((dice[1] * (i + 3)) % 1 > 0.5)] for i, r in enumerate(named)]
    place = phrases[0]
    if len(phrases) > 1:
        place = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    if not shape:
        return place, tuple(named)
    thing = f"a {colour} {shape}"
    form = "{} over {}" if dice[2] < 0.6 else ("{}, {}" if dice[2] < 0.8 else "{} in front of {}")
    return form.format(thing, place), tuple(named)

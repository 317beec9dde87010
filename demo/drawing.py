"""Drawing scenes from their numbers, B at a time on any device: landscapes and single objects.

Numbers are drawn from the generator that is given, on its device; what is drawn from the same
numbers is the same everywhere within rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .world import COLOURS, REGION_NAMES, REGIONS, SHAPES, SIZE

_POLYGON = 40
_RANK = (0, 1, 2, 2, 2)  # the sky is above everything, hills are above what lies flat


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Numbers of the given shape between `low` and `high`, on the generator's device."""
    rand = torch.rand(*shape, generator=generator, device=generator.device)
    return rand * (high - low) + low


def integers(generator: torch.Generator, below: int, count: int) -> Tensor:
    """`count` whole numbers from 0 to `below` - 1, on the generator's device."""
    return torch.randint(below, (count,), generator=generator, device=generator.device)


@dataclass(frozen=True)
class Land:
    """The numbers of B landscapes.

    Attributes:
        layout: long [B, 3], indices into `REGION_NAMES` from top to bottom; where there are two
            regions the second one stands twice.
        upper, gap: [B], where the regions meet.
        amplitude, frequency, phase: [B, 2], of the waves they meet in.
        tint: [B, 5, 1], of each region.
        ripple, sky, hills, field, sand: [B, 1, rows, columns], coarse noise of the textures.
    """

    layout: Tensor
    upper: Tensor
    amplitude: Tensor
    frequency: Tensor
    phase: Tensor
    gap: Tensor
    tint: Tensor
    ripple: Tensor
    sky: Tensor
    hills: Tensor
    field: Tensor
    sand: Tensor


def draw_land(layout: Tensor, generator: torch.Generator) -> Land:
    """Numbers for landscapes of the given layout [B, 3]."""
    count = len(layout)

    def noise(rows: int, columns: int) -> Tensor:
        return uniform(generator, -1, 1, count, 1, rows, columns)

    return Land(
        layout=layout,
        upper=uniform(generator, -0.35, 0.45, count),
        amplitude=uniform(generator, 0.02, 0.11, count, 2),
        frequency=uniform(generator, 1.5, 5.0, count, 2),
        phase=uniform(generator, 0, 2 * math.pi, count, 2),
        gap=uniform(generator, 0.55, 0.75, count),
        tint=uniform(generator, -0.04, 0.04, count, len(REGION_NAMES), 1),
        ripple=noise(6, 4),
        sky=noise(5, 3),
        hills=noise(9, 9),
        field=noise(8, 32),
        sand=noise(32, 32),
    )


def draw_layouts(count: int, generator: torch.Generator) -> Tensor:
    """Two regions, or in 40 % three, of each of `count` landscapes: long [count, 3]."""
    three = uniform(generator, 0, 1, count) < 0.4
    order = uniform(generator, 0, 1, count, len(REGION_NAMES)).argsort(1)
    rank = torch.tensor(_RANK, device=order.device)
    place = rank[order] + 0.1 * torch.arange(len(REGION_NAMES), device=order.device)
    chosen = torch.arange(len(REGION_NAMES), device=order.device) < 2 + three[:, None].long()
    place = torch.where(chosen, place, math.inf)
    layout = order.gather(1, place.argsort(1))[:, :3]
    layout[:, 2] = torch.where(three, layout[:, 2], layout[:, 1])
    return layout


def sort_layout(regions: list[int]) -> list[int]:
    """Regions from top to bottom as a landscape may have them."""
    return sorted(regions, key=lambda region: _RANK[region])


def region_indices(land: Land) -> Tensor:
    """The index of the region at each pixel: long [B, 64, 64]."""
    x, y = _grid(land.layout.device)

    def of(values: Tensor) -> Tensor:
        return values[:, None, None]

    (a, b), (f, _), (p, q) = (
        (of(first), of(second))
        for first, second in (v.unbind(1) for v in (land.amplitude, land.frequency, land.phase))
    )
    wave = a * torch.sin(f * x + p) + b * 0.5 * torch.sin(2.3 * of(land.frequency[:, 1]) * x + q)
    top, middle, bottom = (of(column) for column in land.layout.unbind(1))
    three = middle != bottom
    first = of(land.upper) - 0.4
    above = torch.where(three, first, of(land.upper)) + wave
    regions = torch.where(y > above, middle, top)
    return torch.where(three & (y > first + of(land.gap) - 0.6 * wave), bottom, regions)


def paint_land(land: Land, regions: Tensor) -> Tensor:
    """Pictures [B, 3, 64, 64] of the landscapes whose regions are given."""
    count = len(regions)
    _, y = _grid(regions.device)
    base = torch.tensor(list(REGIONS.values()), device=regions.device)[None] + land.tint
    scene = torch.arange(count, device=regions.device)[:, None, None]
    picture = base[scene, regions].movedim(-1, 1)
    ripple = torch.sin(40 * y + 3 * _widen(land.ripple))
    textures = (
        0.06 * (y - 0.2) + 0.05 * _widen(land.sky),  # paler to the horizon
        0.08 * _widen(land.hills),  # rocks
        0.07 * _widen(land.field),  # blades
        0.05 * _widen(land.sand),  # grains
        0.05 * ripple,  # waves of the water
    )
    shade = torch.zeros(count, SIZE, SIZE, device=regions.device)
    for index, texture in enumerate(textures):
        shade = torch.where(regions == index, texture.expand_as(shade), shade)
    return picture + shade[:, None]


@dataclass(frozen=True)
class Things:
    """The numbers of B objects.

    Attributes:
        shapes, colours: long [B], indices into `SHAPES` and `COLOURS`.
        radius: [B], in units of half the picture.
        centre: [B, 2], x and y in (-1, 1).
        turn: [B], radians.
        light: [B, 1, 1], where the light comes from, radians.
    """

    shapes: Tensor
    colours: Tensor
    radius: Tensor
    centre: Tensor
    turn: Tensor
    light: Tensor


def draw_turns(shapes: Tensor, generator: torch.Generator) -> Tensor:
    """How far each object is turned: [B], radians."""
    turn = uniform(generator, -math.pi, math.pi, len(shapes))
    # Hearts and triangles keep near to upright: turned at will they are hard to name by eye.
    upright = (shapes == SHAPES.index("heart")) | (shapes == SHAPES.index("triangle"))
    return torch.where(upright, turn * 0.15, turn)


def draw_lights(count: int, generator: torch.Generator) -> Tensor:
    """Where the light of `count` objects comes from: [count, 1, 1], radians."""
    return uniform(generator, 0, 2 * math.pi, count, 1, 1)


def object_distance(
    shapes: Tensor, radius: Tensor, centre: Tensor, turn: Tensor, size: int = SIZE
) -> Tensor:
    """Signed distance [B, size, size] to each object, in half pictures; negative inside."""
    count = len(shapes)
    x, y = _grid(shapes.device, size)
    outlines = _polygons(shapes.device)[shapes]  # [B, 40, 2]
    cos, sin = torch.cos(turn), torch.sin(turn)
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    corners = radius[:, None, None] * (outlines @ rotation.mT) + centre[:, None]
    points = torch.stack([x, y], -1).view(1, -1, 2).expand(count, -1, -1)
    distance = _polygon_distance(points, corners).view(count, size, size)
    ring = (torch.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])) - (
        0.76 * radius[:, None, None]
    )
    ring = ring.abs() - 0.24 * radius[:, None, None]
    return torch.where((shapes == SHAPES.index("ring"))[:, None, None], ring, distance)


def coverage(distance: Tensor) -> Tensor:
    """How much of each pixel the object covers, from 0 to 1; [B, 64, 64] as `distance`."""
    return (0.5 - distance * SIZE / 2).clamp(0, 1)


def edge(distance: Tensor) -> Tensor:
    """The object's outline, from 0 to 1; [B, 64, 64] as `distance`."""
    return (1.1 - (distance * SIZE / 2).abs()).clamp(0, 1)


def paint_things(things: Things, distance: Tensor) -> Tensor:
    """The objects' colour [B, 3, 64, 64]: a soft light from one side, darker towards the rim."""
    x, y = _grid(distance.device)
    light = 1.0 + 0.10 * (x * torch.cos(things.light) + y * torch.sin(things.light))
    rim = 1 - 0.30 * torch.exp(-((distance * SIZE / 2) / 1.6).square())
    base = torch.tensor(list(COLOURS.values()), device=distance.device)[things.colours]
    return base[:, :, None, None] * (light * rim)[:, None]


@lru_cache(maxsize=8)
def _grid(device: torch.device, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """x (rightwards) and y (downwards) of the pixel centres in (-1, 1), each [size, size]."""
    axis = (torch.arange(size, device=device) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _widen(noise: Tensor) -> Tensor:
    return F.interpolate(noise, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]


@lru_cache(maxsize=8)
def _polygons(device: torch.device) -> Tensor:
    return torch.stack([_polygon(name) for name in SHAPES]).to(device)


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
    nearest = torch.full(points.shape[:2], math.inf, device=points.device)
    inside = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    px, py = points.unbind(-1)
    for v in range(corners.shape[1]):
        start, end = corners[:, v, None], corners[:, (v + 1) % corners.shape[1], None]
        side, offset = end - start, points - start
        length = side.square().sum(-1).clamp_min(1e-12)
        along = ((offset * side).sum(-1) / length).clamp(0, 1)
        nearest = torch.minimum(nearest, (offset - side * along[..., None]).square().sum(-1))
        (ax, ay), (bx, by) = start.unbind(-1), end.unbind(-1)
        straddles = (ay > py) != (by > py)
        crossing = ax + (py - ay) / torch.where(ay == by, 1.0, by - ay) * (bx - ax)
        inside ^= straddles & (px < crossing)
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())

"""The drawn world of the demo model: one object, or two, over a landscape of two or three regions.

Everything is drawn in batches from a seeded generator, so that training, the quality gates and the
fidelity benchmark can make as many pictures as they like, and the same ones again. A scene comes
with its caption and its two conditions: the object's outline, and the region map, with the object
as a region of its own or, for a *conflict*, of a landscape that knows no object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .drawing import (
    Land,
    Things,
    coverage,
    draw_land,
    draw_layouts,
    draw_lights,
    draw_turns,
    edge,
    integers,
    object_distance,
    paint_land,
    paint_things,
    region_indices,
    sort_layout,
    uniform,
)
from .world import COLOURS, MAP_COLOURS, REGION_NAMES, REGION_PHRASES, REGIONS, SHAPES, SIZE

__all__ = [
    "COLOURS",
    "MAP_COLOURS",
    "REGIONS",
    "REGION_NAMES",
    "REGION_PHRASES",
    "SHAPES",
    "SIZE",
    "Scenes",
    "TwoObjects",
    "draw",
    "draw_overlapping",
    "draw_two",
]

# Two objects: their radii, and the least that lies between them and around them.
_TWO_RADII = (0.27, 0.42)
_TWO_GAP, _MARGIN = 0.06, 0.05
# Where one is in front of the other: their radii, and how far apart they are of what parts them.
_FRONT_RADII, _BACK_RADII, _APART = (0.30, 0.44), (0.42, 0.60), (0.35, 0.65)


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


@dataclass(frozen=True)
class TwoObjects:
    """A batch of B scenes of two objects unlike in shape and colour.

    `picture`, `region_map`, `landscape_map`, `regions`, `captions` and `named` are as in `Scenes`;
    so are `outline` and `object_mask`, of both objects.

    Attributes:
        outlines: [B, 3, 64, 64] of each object alone.
        masks: bool [B, 64, 64], what is seen of each object.
        hidden: bool [B, 64, 64], where the first object hides the second.
        colours: B pairs of names of `COLOURS`.
        shapes: B pairs of names of `SHAPES`.
    """

    picture: Tensor
    outlines: tuple[Tensor, Tensor]
    region_map: Tensor
    landscape_map: Tensor
    masks: tuple[Tensor, Tensor]
    hidden: Tensor
    regions: Tensor
    captions: list[str]
    colours: list[tuple[str, str]]
    shapes: list[tuple[str, str]]
    named: list[tuple[str, ...]]

    @property
    def outline(self) -> Tensor:
        """Both outlines in one condition: [B, 3, 64, 64]."""
        return torch.maximum(*self.outlines)

    @property
    def object_mask(self) -> Tensor:
        """Where either object is: bool [B, 64, 64]."""
        return self.masks[0] | self.masks[1]


def draw(count: int, generator: torch.Generator, object_free: float = 0.12) -> Scenes:
    """Draw `count` scenes.

    Args:
        count: number of scenes, at least 1.
        generator: a CPU generator; the same state gives the same scenes.
        object_free: the share of scenes without an object.
    """
    land = draw_land(_layouts(count, generator), generator)
    colours = integers(generator, len(COLOURS), count)
    shapes = integers(generator, len(SHAPES), count)
    present = torch.rand(count, generator=generator) >= object_free
    things = place_one(shapes, colours, generator)
    regions = region_indices(land)
    distance = object_distance(things.shapes, things.radius, things.centre, things.turn)
    covered = coverage(distance) * present[:, None, None]
    line = edge(distance) * present[:, None, None]
    mask = covered > 0.5
    picture = paint_over(paint_land(land, regions), things, distance, covered)

    colour, shape = _names(things, present)
    kinds = [f"a {c} {s}" if s else "" for c, s in zip(colour, shape, strict=True)]
    captions, named = _captions(kinds, land.layout, generator)
    landscape_map = MAP_COLOURS[regions].movedim(-1, 1)
    return Scenes(
        picture=picture.clamp(0, 1),
        outline=_as_condition(line),
        region_map=_with_objects(landscape_map, mask),
        landscape_map=landscape_map.contiguous(),
        object_mask=mask,
        regions=regions,
        captions=captions,
        colour=colour,
        shape=shape,
        named=named,
    )


def draw_two(count: int, generator: torch.Generator) -> TwoObjects:
    """Draw `count` scenes of two objects apart from each other; `generator` is a CPU generator."""
    land = draw_land(draw_layouts(count, generator), generator)
    return _two(land, place_two(count, generator), generator)


def draw_overlapping(count: int, generator: torch.Generator) -> TwoObjects:
    """Draw `count` scenes whose first object is in front of the second.

    The outlines are whole, masks are what is seen; the caption names the two in either order.
    """
    land = draw_land(draw_layouts(count, generator), generator)
    back, front = place_over(count, generator)
    return _two(land, (front, back), generator, uniform(generator, 0, 1, count) < 0.5)


def _two(
    land: Land,
    pair: tuple[Things, Things],
    generator: torch.Generator,
    turned: Tensor | None = None,
) -> TwoObjects:
    """Scenes of a pair, the first over the second; `turned` bool [B]: captions name it last."""
    count = len(land.layout)
    regions = region_indices(land)
    picture = paint_land(land, regions)
    covers: list[tuple[Tensor, Tensor]] = []
    for things in reversed(pair):
        distance = object_distance(things.shapes, things.radius, things.centre, things.turn)
        covers.insert(0, (edge(distance), coverage(distance)))
        picture = paint_over(picture, things, distance, covers[0][1])
    front, back = (covered > 0.5 for _, covered in covers)
    everywhere = torch.ones(count, dtype=torch.bool)
    names = [_names(things, everywhere) for things in pair]
    colours, shapes = (list(zip(*both, strict=True)) for both in zip(*names, strict=True))
    told = [
        [f"a {c} {s}" for c, s in zip(*row, strict=True)]
        for row in zip(colours, shapes, strict=True)
    ]
    if turned is not None:
        told = [row[:: -1 if t else 1] for row, t in zip(told, turned.tolist(), strict=True)]
    captions, named = _captions([" and ".join(row) for row in told], land.layout, generator)
    landscape_map = MAP_COLOURS[regions].movedim(-1, 1)
    return TwoObjects(
        picture=picture.clamp(0, 1),
        outlines=(_as_condition(covers[0][0]), _as_condition(covers[1][0])),
        region_map=_with_objects(landscape_map, front | back),
        landscape_map=landscape_map.contiguous(),
        masks=(front, back & ~front),
        hidden=back & front,
        regions=regions,
        captions=captions,
        colours=colours,
        shapes=shapes,
        named=named,
    )


def place_one(shapes: Tensor, colours: Tensor, generator: torch.Generator) -> Things:
    """Objects [B] of the given kinds, each alone in its picture, anywhere that it fits."""
    count = len(shapes)
    radius = uniform(generator, 0.42, 0.66, count)
    reach = (0.95 - radius).clamp(max=0.5)
    centre = uniform(generator, -1, 1, count, 2) * reach[:, None]
    turn = draw_turns(shapes, generator)
    return Things(shapes, colours, radius, centre, turn, draw_lights(count, generator))


def place_two(count: int, generator: torch.Generator) -> tuple[Things, Things]:
    """Two smaller objects in each of `count` pictures, apart from each other and of other kinds."""
    kinds = [_two_unlike(len(names), count, generator) for names in (SHAPES, COLOURS)]
    radii = uniform(generator, *_TWO_RADII, count, 2)
    # Along one axis: a margin, the one, a gap, the other, a margin; what is over is shared out.
    spare = 2 - 2 * _MARGIN - _TWO_GAP - 2 * radii.sum(1)
    before, after = uniform(generator, 0, 1, count, 2).sort(1).values.unbind(1)
    one = -1 + _MARGIN + before * spare + radii[:, 0]
    two = one + radii.sum(1) + _TWO_GAP + (after - before) * spare
    along = torch.stack([one, two], 1)
    across = uniform(generator, -1, 1, count, 2) * (1 - _MARGIN - radii)
    upright = (uniform(generator, 0, 1, count) < 0.5)[:, None]
    x, y = torch.where(upright, across, along), torch.where(upright, along, across)
    swapped = (uniform(generator, 0, 1, count) < 0.5)[:, None]
    x, y, radii = (torch.where(swapped, value.flip(1), value) for value in (x, y, radii))
    return _unlike_pair(radii.unbind(1), torch.stack([x, y], 2).unbind(1), generator, kinds)


def place_over(count: int, generator: torch.Generator) -> tuple[Things, Things]:
    """Two unlike objects in each of `count` pictures; the second hides part of the first."""
    kinds = [_two_unlike(len(names), count, generator) for names in (SHAPES, COLOURS)]
    radii = [uniform(generator, *among, count) for among in (_BACK_RADII, _FRONT_RADII)]
    reach = [(1 - _MARGIN - radius)[:, None] for radius in radii]
    back = uniform(generator, -1, 1, count, 2) * reach[0]
    angle = uniform(generator, -math.pi, math.pi, count)
    apart = (radii[0] + radii[1]) * uniform(generator, *_APART, count)
    front = back + apart[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    # Out of the picture on one side: as far on the other.
    front = torch.where(front.abs() > reach[1], 2 * back - front, front)
    centres = [back, torch.minimum(front.maximum(-reach[1]), reach[1])]
    return _unlike_pair(radii, centres, generator, kinds)


def _unlike_pair(
    radii: Sequence[Tensor],
    centres: Sequence[Tensor],
    generator: torch.Generator,
    kinds: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Things, Things]:
    """Two objects of the given shapes and colours, radii [B] and centres [B, 2]."""

    def thing(radius: Tensor, centre: Tensor, shapes: Tensor, colours: Tensor) -> Things:
        turn = draw_turns(shapes, generator)
        return Things(shapes, colours, radius, centre, turn, draw_lights(len(shapes), generator))

    one, other = (thing(*of) for of in zip(radii, centres, *kinds, strict=True))
    return one, other


def chosen(where: Tensor, one: Things, other: Things) -> Things:
    """`one` where bool [B] `where` says so, else `other`."""

    def of(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(where.view(-1, *[1] * (first.ndim - 1)), first, second)

    named = vars(other)
    return Things(**{name: of(value, named[name]) for name, value in vars(one).items()})


def paint_over(picture: Tensor, things: Things, distance: Tensor, covered: Tensor) -> Tensor:
    """The pictures [B, 3, 64, 64] with an object over each, `covered` [B, 64, 64] of it."""
    return picture + covered[:, None] * (paint_things(things, distance) - picture)


def _two_unlike(kinds: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    first = integers(generator, kinds, count)
    return first, (first + 1 + integers(generator, kinds - 1, count)) % kinds


def _layouts(count: int, generator: torch.Generator) -> Tensor:
    """As `draw_layouts`, scene by scene: the order of numbers that the first scenes had."""
    layouts = []
    for _ in range(count):
        bands = 2 + int(torch.rand(1, generator=generator) < 0.4)
        chosen = torch.randperm(len(REGION_NAMES), generator=generator)[:bands].tolist()
        row = sort_layout(chosen)
        layouts.append(row + row[-1:] * (3 - bands))
    return torch.tensor(layouts)


def _names(things: Things, present: Tensor) -> tuple[list[str], list[str]]:
    """Names of colours and shapes, "" where no object is present."""
    colours, shapes = list(COLOURS), SHAPES
    there = present.tolist()
    return (
        [colours[c] if p else "" for c, p in zip(things.colours.tolist(), there, strict=True)],
        [shapes[s] if p else "" for s, p in zip(things.shapes.tolist(), there, strict=True)],
    )


def _as_condition(line: Tensor) -> Tensor:
    return line[:, None].expand(-1, 3, -1, -1).contiguous()


def _with_objects(landscape_map: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None], MAP_COLOURS[-1].view(1, 3, 1, 1), landscape_map).contiguous()


def _captions(
    things: list[str], layout: Tensor, generator: torch.Generator
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Captions and the regions that each names; `things` are "" where there is no object."""
    captions, named = [], []
    for thing, row in zip(things, layout.tolist(), strict=True):
        visible = [REGION_NAMES[r] for r in dict.fromkeys(row)]
        dice = torch.rand(4, generator=generator).tolist()
        caption, mentioned = write_caption(thing, visible, dice)
        captions.append(caption)
        named.append(mentioned)
    return captions, named


def write_caption(thing: str, visible: list[str], dice: list[float]) -> tuple[str, tuple[str, ...]]:
    """A caption and the regions it names; now and then it leaves some of them out.

    Args:
        thing: "a red star", "a red star and a blue ring", or "" without an object.
        visible: the regions from top to bottom.
        dice: three numbers in [0, 1): whether regions are left out, how they and the whole are put.
    """
    named = visible if dice[0] > 0.15 or not thing else visible[-1:]
    phrases = [REGION_PHRASES[r][int((dice[1] * (i + 3)) % 1 > 0.5)] for i, r in enumerate(named)]
    place = phrases[0]
    if len(phrases) > 1:
        place = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    if not thing:
        return place, tuple(named)
    form = "{} over {}" if dice[2] < 0.6 else ("{}, {}" if dice[2] < 0.8 else "{} in front of {}")
    return form.format(thing, place), tuple(named)

"""Which shape a picture's object has, and whether two objects have their own colours."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .drawing import object_distance
from .metrics import COLOUR_PIXELS, mask_iou, object_mask, pure
from .scenes import TwoObjects
from .world import COLOURS, SHAPES

_TURNS = 24
_SIDE, _REACH = 48, 1.1  # of the frame, in pixels and in square roots of the object's area
_KNOWN = 0.75  # a blob fits its best template by less than this


def shape_fits(mask: Tensor) -> Tensor:
    """How well each shape of `SHAPES` fits masks bool [B, H, W]: IoU [B, 5], 0 where empty.

    Masks and templates are compared with the same centre of mass and area, templates at 24 turns.
    """
    framed = _framed(mask).flatten(1)
    templates = _templates().to(mask.device)
    both = framed @ templates.T
    either = framed.sum(1)[:, None] + templates.sum(1) - both
    return (both / either.clamp_min(1)).unflatten(1, (len(SHAPES), _TURNS)).amax(2)


def object_shape(picture: Tensor) -> list[str]:
    """The name in `SHAPES` that fits the picture's object best: B strings.

    "" where there are fewer than 12 object pixels or no shape fits them by an IoU of 0.75.
    """
    mask = object_mask(picture)
    fits, best = shape_fits(mask).max(1)
    known = (fits >= _KNOWN) & (mask.flatten(1).sum(1) >= COLOUR_PIXELS)
    return [SHAPES[b] if k else "" for b, k in zip(best.tolist(), known.tolist(), strict=True)]


def colour_labels(picture: Tensor) -> Tensor:
    """Index into `COLOURS` of every object pixel, by hue; -1 elsewhere: long [B, H, W]."""
    base = pure(torch.tensor(list(COLOURS.values()), device=picture.device))
    pixels = pure(picture.float().movedim(1, -1))
    nearest = torch.cdist(pixels.flatten(1, 2), base).argmin(-1).unflatten(1, picture.shape[-2:])
    return torch.where(object_mask(picture), nearest, -1)


def own_ious(picture: Tensor, scenes: TwoObjects) -> Tensor:
    """IoU of what has each object's own colour with what should be seen of it: [2, B].

    Shape, place and colour in one: objects that swap their colours have nothing in common with it.
    """
    own = zip(_own_colours(picture, scenes), scenes.masks, strict=True)
    return torch.stack([mask_iou(found, mask) for found, mask in own])


def in_front(picture: Tensor, scenes: TwoObjects) -> Tensor:
    """The share of where the first object hides the second that has the first's colour: [B].

    1 where nothing is hidden.
    """
    hidden = scenes.hidden.to(picture.device).flatten(1)
    seen = (_own_colours(picture, scenes)[0].flatten(1) & hidden).sum(1)
    count = hidden.sum(1)
    return torch.where(count > 0, seen / count.clamp_min(1), 1.0)


def colours_kept(picture: Tensor, scenes: TwoObjects) -> Tensor:
    """Whether both objects are there, each shape in its own colour: bool [B].

    What has a caption's colour must fit that colour's shape better than the other one's.
    """
    fits = []
    there = torch.ones(len(picture), dtype=torch.bool, device=picture.device)
    for mask in _own_colours(picture, scenes):
        there &= mask.flatten(1).sum(1) >= COLOUR_PIXELS
        fits.append(shape_fits(mask))
    one, two = (
        torch.tensor([SHAPES.index(pair[number]) for pair in scenes.shapes], device=picture.device)
        for number in range(2)
    )

    def sum_of(first: Tensor, second: Tensor) -> Tensor:
        return (fits[0].gather(1, first[:, None]) + fits[1].gather(1, second[:, None]))[:, 0]

    return there & (sum_of(one, two) > sum_of(two, one))


def _own_colours(picture: Tensor, scenes: TwoObjects) -> Tensor:
    """Where the picture has the colour of each scene's first and second object: [2, B, H, W]."""
    names = list(COLOURS)
    wanted = torch.tensor([[names.index(colour) for colour in pair] for pair in scenes.colours])
    return colour_labels(picture) == wanted.T.to(picture.device)[:, :, None, None]


def _framed(mask: Tensor) -> Tensor:
    """Masks float [B, 48, 48] moved and scaled so that centre of mass and area are the same."""
    weight = mask.float()
    height, width = weight.shape[-2:]
    area = weight.flatten(1).sum(1).clamp_min(1)
    y = torch.arange(height, device=mask.device) + 0.5
    x = torch.arange(width, device=mask.device) + 0.5
    middle = torch.stack([(weight.sum(1) * x).sum(1) / area, (weight.sum(2) * y).sum(1) / area], -1)
    axis = ((torch.arange(_SIDE, device=mask.device) + 0.5) * 2 / _SIDE - 1) * _REACH
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    places = middle[:, None, None] + area.sqrt()[:, None, None, None] * grid
    places = places * 2 / torch.tensor([width, height], device=mask.device) - 1
    sampled = F.grid_sample(weight[:, None], places, align_corners=False)[:, 0]
    return (sampled > 0.5).float()


@lru_cache(maxsize=1)
def _templates() -> Tensor:
    """Every shape at every turn: float [5 * 24, 48 * 48]."""
    shapes = torch.arange(len(SHAPES)).repeat_interleave(_TURNS)
    count = len(shapes)
    turn = (torch.arange(_TURNS) * 2 * math.pi / _TURNS).repeat(len(SHAPES))
    distance = object_distance(
        shapes, torch.full((count,), 0.9), torch.zeros(count, 2), turn, size=128
    )
    return _framed(distance < 0).flatten(1)

"""Recognising shapes, and whether two objects have their own colours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from demo.recognise import (
    colour_labels,
    colours_kept,
    in_front,
    object_shape,
    own_ious,
    shape_fits,
)
from demo.scenes import COLOURS, SHAPES, Scenes, TwoObjects, draw, draw_overlapping, draw_two


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw(64, torch.Generator().manual_seed(11), object_free=0)


@pytest.fixture(scope="module")
def two() -> TwoObjects:
    return draw_two(32, torch.Generator().manual_seed(12))


def test_every_drawn_shape_is_recognised(scenes):
    assert set(scenes.shape) == set(SHAPES)
    assert object_shape(scenes.picture) == scenes.shape


def test_fits_do_not_depend_on_place_and_size():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")

    def ring(cx: int, cy: int, radius: float) -> torch.Tensor:
        distance = torch.hypot(x - cx + 0.5, y - cy + 0.5)
        return (distance < radius) & (distance > 0.52 * radius)

    fits = shape_fits(torch.stack([ring(20, 22, 12), ring(36, 30, 24)]))
    assert fits.argmax(1).tolist() == [SHAPES.index("ring")] * 2
    assert fits.amax(1).min() > 0.85
    assert (fits[0] - fits[1]).abs().max() < 0.1


def test_a_blob_and_an_empty_picture_have_no_shape():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    blob = torch.where(torch.hypot(x - 30.0, y - 34.0) < 16, 0.9, 0.1)
    red = torch.stack([blob, torch.full_like(blob, 0.1), torch.full_like(blob, 0.1)])
    assert object_shape(torch.stack([red, torch.full((3, 64, 64), 0.5)])) == ["", ""]
    assert shape_fits(torch.zeros(1, 64, 64, dtype=torch.bool)).tolist() == [[0] * len(SHAPES)]


def test_pixels_are_labelled_by_hue(scenes):
    labels = colour_labels(scenes.picture)
    for b, name in enumerate(scenes.colour):
        inside = labels[b][labels[b] >= 0]
        assert (inside == list(COLOURS).index(name)).float().mean() > 0.9


def test_swapped_colours_are_noticed(two):
    assert colours_kept(two.picture, two).all()
    swapped = replace(two, colours=[(b, a) for a, b in two.colours])
    assert not colours_kept(two.picture, swapped).any()


def test_a_missing_object_is_noticed(two):
    masks = two.masks[1][:, None]
    assert not colours_kept(two.picture.masked_fill(masks, 0.5), two).any()


def test_an_object_counts_in_its_own_colour_alone(two):
    own = own_ious(two.picture, two)
    assert own.shape == (2, 32)
    assert own.min() > 0.8
    swapped = replace(two, colours=[(b, a) for a, b in two.colours])
    assert own_ious(two.picture, swapped).max() < 0.05
    gone = own_ious(two.picture.masked_fill(two.masks[1][:, None], 0.5), two)
    assert gone[0].min() > 0.8
    assert gone[1].max() < 0.4


def test_who_is_in_front_is_seen_where_something_is_hidden(two):
    assert (in_front(two.picture, two) == 1).all()
    over = draw_overlapping(64, torch.Generator().manual_seed(3))
    there = over.hidden.flatten(1).sum(1) > 20
    assert int(there.sum()) > 30
    assert in_front(over.picture, over)[there].mean() > 0.9
    other = replace(over, colours=[(b, a) for a, b in over.colours])
    assert in_front(over.picture, other)[there].mean() < 0.05

"""Measures of pictures: about 1 on the drawn scenes themselves, low on wrong pictures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from demo.metrics import (
    mask_iou,
    object_colour,
    object_iou,
    object_mask,
    region_accuracy,
    region_labels,
    regions_present,
)
from demo.scenes import REGION_NAMES, REGIONS, SIZE, Scenes, draw


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw(96, torch.Generator().manual_seed(11), object_free=0)


def blurred(picture: Tensor) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(picture, [1] * 4, mode="replicate"), kernel, groups=3)


def noisy(picture: Tensor) -> Tensor:
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    return (picture + 0.03 * noise).clamp(0, 1)


SEEN_AS = {"as drawn": lambda p: p, "blurred": blurred, "noisy": noisy}


@pytest.mark.parametrize("change", SEEN_AS.values(), ids=SEEN_AS)
def test_a_drawn_picture_measures_as_itself(scenes, change):
    picture = change(scenes.picture)
    iou, accuracy = object_iou(picture, scenes.object_mask), region_accuracy(picture, scenes)
    assert iou.mean() > 0.90
    assert iou.min() > 0.70
    assert accuracy.mean() > 0.98
    assert accuracy.min() > 0.92
    assert object_colour(picture) == scenes.colour
    for named, present in zip(scenes.named, regions_present(picture), strict=True):
        assert set(named) <= present or len(named) == 3  # a third band can be nearly hidden


def test_results_have_the_documented_shapes_and_ranges(scenes):
    picture = scenes.picture[:5]
    assert object_mask(picture).shape == (5, SIZE, SIZE)
    assert object_mask(picture).dtype == torch.bool
    labels = region_labels(picture)
    assert labels.shape == (5, SIZE, SIZE)
    assert labels.dtype == torch.long
    assert labels.min() >= 0
    assert labels.max() < len(REGION_NAMES)
    assert object_iou(picture, scenes.object_mask[:5]).shape == (5,)


def test_a_landscape_without_an_object_has_none():
    scenes = draw(48, torch.Generator().manual_seed(12), object_free=1.0)
    assert not object_mask(scenes.picture).any()
    assert object_colour(scenes.picture) == [""] * 48
    assert object_iou(scenes.picture, scenes.object_mask).eq(1).all()
    assert region_accuracy(scenes.picture, scenes).min() > 0.95


def test_a_missing_object_scores_zero_but_keeps_its_landscape(scenes):
    base = torch.tensor(list(REGIONS.values()))
    empty = base[scenes.regions].movedim(-1, 1)
    assert object_iou(empty, scenes.object_mask).eq(0).all()
    assert region_accuracy(empty, scenes).min() > 0.98


def test_another_scenes_picture_scores_low(scenes):
    other = scenes.picture.roll(1, 0)
    assert object_iou(other, scenes.object_mask).mean() < 0.4
    assert region_accuracy(other, scenes).mean() < 0.6
    agreeing = sum(a == b for a, b in zip(object_colour(other), scenes.colour, strict=True))
    assert agreeing < 48


def test_an_object_at_another_place_loses_both_scores(scenes):
    moved = scenes.picture.flip(-1)
    shifted = scenes.object_mask & ~scenes.object_mask.flip(-1)
    off_centre = shifted.flatten(1).sum(1) > 300
    assert off_centre.any()
    assert object_iou(moved, scenes.object_mask)[off_centre].max() < 0.75
    flat = moved.clone()
    assert region_accuracy(flat, scenes)[off_centre].mean() < 0.95


def test_colour_ignores_shade(scenes):
    darker = scenes.picture * 0.8
    right = sum(a == b for a, b in zip(object_colour(darker), scenes.colour, strict=True))
    assert right == len(scenes.colour)


def test_iou_of_masks():
    a = torch.zeros(3, 4, 4, dtype=torch.bool)
    b = a.clone()
    a[1, :2], b[1, :2] = True, True
    a[2, :2], b[2, 1:3] = True, True
    assert mask_iou(a, b).tolist() == pytest.approx([1, 1, 1 / 3])

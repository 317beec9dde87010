"""The drawn world: repeatable, and captions, conditions and masks that agree with each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from demo.scenes import (
    COLOURS,
    MAP_COLOURS,
    REGION_NAMES,
    REGION_PHRASES,
    SHAPES,
    SIZE,
    Scenes,
    draw,
)


def drawn(seed: int, count: int = 64, **more: float) -> Scenes:
    return draw(count, torch.Generator().manual_seed(seed), **more)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return drawn(3, 128)


def test_the_same_seed_draws_the_same_scenes():
    first, again, other = drawn(5, 8), drawn(5, 8), drawn(6, 8)
    for name in ("picture", "outline", "region_map", "landscape_map", "object_mask", "regions"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.captions == again.captions
    assert not torch.equal(first.picture, other.picture)


def test_pictures_and_conditions_are_in_range(scenes):
    for name in ("picture", "outline", "region_map", "landscape_map"):
        values = getattr(scenes, name)
        assert values.shape == (128, 3, SIZE, SIZE)
        assert values.dtype == torch.float32
        assert values.min() >= 0
        assert values.max() <= 1


def test_captions_say_what_is_there(scenes):
    for b, caption in enumerate(scenes.captions):
        words = set(caption.replace(",", " ").split())
        assert scenes.named[b]
        visible = {REGION_NAMES[i] for i in scenes.regions[b].unique().tolist()}
        assert set(scenes.named[b]) <= visible
        for name in scenes.named[b]:
            assert any(phrase in caption for phrase in REGION_PHRASES[name])
        if scenes.shape[b]:
            assert f"a {scenes.colour[b]} {scenes.shape[b]}" in caption
        else:
            assert not words & set(SHAPES)
            assert scenes.colour[b] == ""


def test_some_scenes_have_no_object_and_every_thing_occurs(scenes):
    empty = [b for b, shape in enumerate(scenes.shape) if not shape]
    assert 0 < len(empty) < 32
    assert not scenes.object_mask[empty].any()
    assert not scenes.outline[empty].any()
    assert set(scenes.shape) == {*SHAPES, ""}
    assert set(scenes.colour) == {*COLOURS, ""}
    assert set(range(len(REGION_NAMES))) == set(scenes.regions.unique().tolist())


def test_an_object_can_be_asked_for():
    assert all(drawn(4, 32, object_free=0).shape)
    assert not any(drawn(4, 32, object_free=1).shape)


def test_the_object_lies_inside_the_picture_and_is_no_speck(scenes):
    mask = scenes.object_mask
    for edge in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]):
        assert not edge.any()
    areas = mask.flatten(1).sum(1)[[bool(shape) for shape in scenes.shape]]
    assert areas.min() > 100
    assert areas.max() < SIZE * SIZE / 2


def test_maps_show_the_regions_and_the_object(scenes):
    landscape = MAP_COLOURS[scenes.regions].movedim(-1, 1)
    assert torch.equal(scenes.landscape_map, landscape)
    inside = scenes.object_mask[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(scenes.region_map[~inside], landscape[~inside])
    expected = MAP_COLOURS[-1].view(1, 3, 1, 1).expand_as(landscape)
    assert torch.equal(scenes.region_map[inside], expected[inside])


def test_the_outline_runs_along_the_objects_edge(scenes):
    line = scenes.outline[:, 0] > 0.5
    mask = scenes.object_mask[:, None].float()
    grown = F.max_pool2d(mask, 5, 1, 2)[:, 0] > 0.5
    shrunk = -F.max_pool2d(-mask, 5, 1, 2)[:, 0] > 0.5
    assert not (line & ~grown).any()
    # The notch of a heart can be narrower than a pixel of the mask.
    assert (line & shrunk).sum() < 0.001 * line.sum()
    rim = (F.max_pool2d(mask, 3, 1, 1)[:, 0] > 0.5) & ~scenes.object_mask
    assert (line & rim).any(-1).any(-1)[[bool(shape) for shape in scenes.shape]].all()


def test_the_object_has_its_colour(scenes):
    for b in range(64):
        if scenes.shape[b]:
            mean = scenes.picture[b][:, scenes.object_mask[b]].mean(1)
            distance = {n: float((mean - torch.tensor(c)).norm()) for n, c in COLOURS.items()}
            assert min(distance, key=distance.__getitem__) == scenes.colour[b]

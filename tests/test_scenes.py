"""The drawn world: repeatable, and captions, conditions and masks that agree with each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from demo.drawing import draw_land, draw_layouts, region_indices
from demo.scenes import (
    COLOURS,
    MAP_COLOURS,
    REGION_NAMES,
    REGION_PHRASES,
    SHAPES,
    SIZE,
    Scenes,
    TwoObjects,
    draw,
    draw_overlapping,
    draw_two,
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


@pytest.fixture(scope="module")
def two() -> TwoObjects:
    return draw_two(96, torch.Generator().manual_seed(7))


def test_two_objects_are_apart_whole_and_unlike(two):
    assert not (two.masks[0] & two.masks[1]).any()
    for mask in two.masks:
        assert mask.flatten(1).sum(1).min() > 60
        for edge in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]):
            assert not edge.any()
    assert all(a != b for a, b in [*two.colours, *two.shapes])
    assert {name for pair in two.shapes for name in pair} == set(SHAPES)
    assert not two.hidden.any()
    # Neither is always left of the other, nor above it.
    middle = [mask.float().argmax(1).float().mean(1) for mask in two.masks]
    assert 0.2 < (middle[0] < middle[1]).float().mean() < 0.8


def test_two_objects_have_a_caption_conditions_and_a_picture(two):
    for b, caption in enumerate(two.captions):
        (c, d), (s, t) = two.colours[b], two.shapes[b]
        assert caption.startswith(f"a {c} {s} and a {d} {t}")
    assert torch.equal(two.outline, two.outlines[0] + two.outlines[1])
    assert torch.equal(two.object_mask, two.masks[0] | two.masks[1])
    for mask, outline in zip(two.masks, two.outlines, strict=True):
        grown = F.max_pool2d(mask[:, None].float(), 5, 1, 2)[:, 0] > 0.5
        assert not ((outline[:, 0] > 0.5) & ~grown).any()
    inside = two.object_mask[:, None].expand(-1, 3, -1, -1)
    crimson = MAP_COLOURS[-1].view(1, 3, 1, 1).expand_as(two.region_map)
    assert torch.equal(two.region_map[inside], crimson[inside])
    assert torch.equal(two.region_map[~inside], two.landscape_map[~inside])
    for b in range(16):
        for number in range(2):
            mean = two.picture[b][:, two.masks[number][b]].mean(1)
            distance = {n: float((mean - torch.tensor(c)).norm()) for n, c in COLOURS.items()}
            assert min(distance, key=distance.__getitem__) == two.colours[b][number]


def test_the_first_of_two_that_overlap_is_in_front():
    over = draw_overlapping(96, torch.Generator().manual_seed(8))
    assert not (over.masks[0] & over.masks[1]).any()
    assert not (over.hidden & ~over.masks[0]).any()
    whole = over.masks[1] | over.hidden
    share = over.hidden.flatten(1).sum(1) / whole.flatten(1).sum(1)
    assert share.median() > 0.05
    assert share.max() < 0.8
    for b in range(96):
        for mask, colour in ((over.hidden, 0), (over.masks[0], 0), (over.masks[1], 1)):
            if int(mask[b].sum()) < 12:
                continue
            mean = over.picture[b][:, mask[b]].mean(1)
            distance = {n: float((mean - torch.tensor(c)).norm()) for n, c in COLOURS.items()}
            assert min(distance, key=distance.__getitem__) == over.colours[b][colour]
    # Outlines are whole: of the hidden part too.
    inside = F.max_pool2d(over.hidden[:, None].float(), 3, 1, 1)[:, 0] > 0.5
    deep = -F.max_pool2d(-over.masks[0][:, None].float(), 5, 1, 2)[:, 0] > 0.5
    assert ((over.outlines[1][:, 0] > 0.5) & inside & deep).any()
    # The caption does not tell which one is in front.
    first = [
        caption.startswith(f"a {colours[0]} {shapes[0]}")
        for caption, colours, shapes in zip(over.captions, over.colours, over.shapes, strict=True)
    ]
    assert 0.3 < sum(first) / 96 < 0.7
    for mask in over.masks:
        for edge in (mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]):
            assert not edge.any()


def test_landscapes_drawn_at_once_are_laid_out_as_those_drawn_singly(scenes):
    layout = draw_layouts(512, torch.Generator().manual_seed(1))
    three = layout[:, 1] != layout[:, 2]
    assert 0.3 < three.float().mean() < 0.5
    for row in layout.tolist():
        names = [REGION_NAMES[i] for i in dict.fromkeys(row)]
        assert len(names) >= 2
        assert "sky" not in names[1:]
        assert "hills" not in names[1:] or names[0] == "sky"
    land = draw_land(layout, torch.Generator().manual_seed(1))
    regions = region_indices(land)
    for b in range(64):
        assert set(regions[b].unique().tolist()) <= set(layout[b].tolist())
    assert (regions[:, 0] == layout[:, :1]).all()


def test_the_scenes_of_a_seed_stay_what_they_were():
    scenes = drawn(1_000_225, 2, object_free=0)
    assert scenes.captions[0] == "a blue heart in front of brown hills and blue water"
    assert float(scenes.picture.mean()) == pytest.approx(0.5339677, abs=1e-5)
    assert float(scenes.outline.mean()) == pytest.approx(0.0291454, abs=1e-5)
    assert int(scenes.regions.sum()) == 17157

"""Conditions in the detectors' own formats, by constants that are known apart from this project."""

import itertools

import numpy as np
import pytest

from compare.drawing import DRAWN
from compare.pairs import PAIRS
from compare.places import ADE20K, PLACES, THINGS, depth_map, outline_map, segmentation_map
from compare.poses import COLOURS, KEYPOINTS, LIMBS, POSES, draw_pose

SIZE = (512, 512)
# The first classes of ADE20K's 150 and their colours, and some further ones, from its own list.
KNOWN = {
    "wall": (120, 120, 120),
    "building": (180, 120, 120),
    "sky": (6, 230, 230),
    "floor": (80, 50, 50),
    "tree": (4, 200, 3),
    "ceiling": (120, 120, 80),
    "road": (140, 140, 140),
    "windowpane": (230, 230, 230),
    "grass": (4, 250, 7),
    "sidewalk": (235, 255, 7),
    "mountain": (143, 255, 140),
    "car": (0, 102, 200),
    "water": (61, 230, 250),
    "sofa": (11, 102, 255),
    "hill": (255, 102, 0),
}


def colours_of(picture):
    return {tuple(map(int, c)) for c in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}


class TestSkeletons:
    def test_keypoints_are_those_of_coco_with_a_neck(self):
        assert len(KEYPOINTS) == len(COLOURS) == 18
        order = {"nose": 0, "neck": 1, "right shoulder": 2, "left shoulder": 5, "right hip": 8}
        order |= {"left hip": 11, "left ankle": 13, "right eye": 14, "left ear": 17}
        assert {name: KEYPOINTS.index(name) for name in order} == order

    def test_colours_go_around_the_circle_in_steps_of_a_third_of_a_channel(self):
        assert COLOURS[0] == (255, 0, 0)
        assert COLOURS[6] == (0, 255, 0)
        assert COLOURS[12] == (0, 0, 255)
        assert COLOURS[17] == (255, 0, 85)
        ring = [*COLOURS, COLOURS[0]]
        for one, other in itertools.pairwise(ring):
            assert sorted(abs(a - b) for a, b in zip(one, other, strict=True)) == [0, 0, 85]

    def test_limbs_join_every_keypoint_once(self):
        assert len(LIMBS) == 17
        assert LIMBS[0] == (1, 2)
        assert LIMBS[-1] == (15, 17)
        seen = {1}
        for _ in LIMBS:
            seen |= {b for a, b in LIMBS if a in seen} | {a for a, b in LIMBS if b in seen}
        assert seen == set(range(18))

    @pytest.mark.parametrize("name", POSES)
    def test_a_picture_has_their_colours_and_no_others(self, name):
        found = colours_of(draw_pose(name, SIZE))
        limbs = {tuple(int(value * 0.6) for value in colour) for colour in COLOURS[:17]}
        assert found == {(0, 0, 0), *COLOURS, *limbs}

    @pytest.mark.parametrize("size", [(512, 512), (768, 512), (512, 768), (64, 64)])
    @pytest.mark.parametrize("name", POSES)
    def test_a_keypoint_is_where_it_is_said_to_be(self, name, size):
        picture = draw_pose(name, size)
        assert picture.size == size
        for key in ("right wrist", "left ankle", "left wrist"):
            x, y = POSES[name][key]
            found = picture.getpixel((int(x * size[0]), int(y * size[1])))
            assert found == COLOURS[KEYPOINTS.index(key)]

    def test_discs_are_as_large_as_the_detectors(self):
        """A radius of four pixels at 512x512."""
        red = (np.asarray(draw_pose("waving", SIZE)) == COLOURS[7]).all(-1)  # a wrist alone
        assert red.any(0).sum() in (8, 9)
        assert red.any(1).sum() in (8, 9)

    def test_poses_differ_in_what_they_are_named_for(self):
        assert POSES["waving"]["left wrist"][1] < POSES["waving"]["nose"][1]
        assert POSES["standing"]["left wrist"][1] > POSES["standing"]["left shoulder"][1]
        for side in ("left", "right"):
            thighs = {
                name: abs(pose[f"{side} knee"][1] - pose[f"{side} hip"][1])
                for name, pose in POSES.items()
            }
            assert thighs["sitting"] < 0.5 * thighs["standing"]
        for pose in POSES.values():
            assert set(pose) == set(KEYPOINTS)
            assert pose["right shoulder"][0] < pose["left shoulder"][0]


class TestPlaces:
    def test_colours_are_ade20ks(self):
        assert {name: ADE20K[name][1] for name in KNOWN} == KNOWN
        numbers = [number for number, _colour in ADE20K.values()]
        assert numbers == sorted(set(numbers))
        assert max(numbers) < 150

    @pytest.mark.parametrize("name", PLACES)
    def test_segmentation_maps_have_classes_colours_only(self, name):
        found = colours_of(segmentation_map(name, SIZE))
        assert found <= {colour for _number, colour in ADE20K.values()}
        assert len(found) >= 6
        assert (150, 5, 61) not in found, "a person"

    @pytest.mark.parametrize("name", PLACES)
    def test_depth_is_grey_white_near_and_knows_nobody(self, name):
        pixels = np.asarray(depth_map(name, SIZE)).astype(int)
        assert (pixels == pixels[..., :1]).all()
        assert pixels.max() == 255
        assert pixels[-1].min() > pixels[200, 256].max(), "the ground before us is near"
        assert len(np.unique(pixels)) > 64

    def test_the_sky_is_infinitely_far(self):
        for name in ("street", "hills"):
            sky = (np.asarray(segmentation_map(name, SIZE)) == ADE20K["sky"][1]).all(-1)
            assert sky.any()
            assert (np.asarray(depth_map(name, SIZE))[sky] == 0).all()

    def test_walls_and_floor_of_the_room_meet(self):
        """Depth has no step where two surfaces of one box join."""
        grey = np.asarray(depth_map("room", (1000, 1000)))[..., 0].astype(int)
        for x, y in ((0.125, 0.69), (0.875, 0.69), (0.5, 0.60), (0.125, 0.10)):
            around = grey[int(y * 1000) - 3 : int(y * 1000) + 4, int(x * 1000)]
            assert np.abs(np.diff(around)).max() <= 5

    @pytest.mark.parametrize("name", THINGS)
    def test_outlines_are_thin_and_white(self, name):
        picture = outline_map(name, SIZE)
        assert colours_of(picture) == {(0, 0, 0), (255, 255, 255)}
        assert 0.003 < np.asarray(picture).mean() / 255 < 0.04
        assert np.asarray(outline_map(name, (1024, 1024))).any()


class TestPairs:
    @pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
    def test_every_pair_can_be_drawn_and_its_word_found(self, pair):
        assert pair.prompt.split().count(pair.word) == 1
        assert set(pair.kinds) <= set(DRAWN)
        front, back = pair.conditions((320, 192))
        assert front.size == back.size == (320, 192)
        assert front.mode == back.mode == "RGB"
        assert 0 < (np.asarray(front).max(-1) > 0).mean() < 0.3, "in front of something"

    def test_all_kinds_poses_and_places_take_part(self):
        used = {end for pair in PAIRS.values() for end in (pair.front, pair.back)}
        assert {kind for kind, _name in used} == set(DRAWN)
        assert {name for _kind, name in used} == {*POSES, *PLACES, *THINGS}

"""Skeletons as OpenPose's detectors draw them: 18 keypoints of the COCO order, one colour each.

Colours, limbs and their order are those of the images that ControlNets were trained on
(Cao et al., "OpenPose", and the detector that came with ControlNet, Zhang et al., 2023): limbs are
filled ellipses of six tenths of a keypoint's colour, keypoints are discs over them, on black.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw

Point = tuple[float, float]

# A person's own right is on the left of a picture that they look out of.
KEYPOINTS = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist"),
    *("left shoulder", "left elbow", "left wrist", "right hip", "right knee", "right ankle"),
    *("left hip", "left knee", "left ankle", "right eye", "left eye", "right ear", "left ear"),
)
COLOURS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
# Pairs of keypoints, counted from 0; the n-th has the n-th colour, and a later one is drawn over.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
LIMB_BRIGHTNESS = 0.6
THICKNESS = 4 / 512  # half a limb's width and a keypoint's radius, of the picture's shorter side

_HEAD: dict[str, Point] = {
    "nose": (0.500, 0.165),
    "right eye": (0.486, 0.148),
    "left eye": (0.514, 0.148),
    "right ear": (0.466, 0.158),
    "left ear": (0.534, 0.158),
    "neck": (0.500, 0.250),
    "right shoulder": (0.432, 0.254),
    "left shoulder": (0.568, 0.254),
}
_LEGS: dict[str, Point] = {
    "right hip": (0.457, 0.505),
    "right knee": (0.450, 0.690),
    "right ankle": (0.446, 0.870),
    "left hip": (0.543, 0.505),
    "left knee": (0.552, 0.690),
    "left ankle": (0.560, 0.870),
}
_RIGHT_ARM: dict[str, Point] = {"right elbow": (0.404, 0.375), "right wrist": (0.394, 0.485)}
_SEATED = 0.09  # how much lower than a standing one's a sitting person's head is

# Keypoints by name, as shares of the picture's width and height.
POSES: Mapping[str, Mapping[str, Point]] = {
    "standing": {
        **_HEAD,
        **_LEGS,
        **_RIGHT_ARM,
        "left elbow": (0.598, 0.375),
        "left wrist": (0.612, 0.485),
    },
    "waving": {
        **_HEAD,
        **_LEGS,
        **_RIGHT_ARM,
        "left elbow": (0.664, 0.236),
        "left wrist": (0.690, 0.112),
    },
    "sitting": {
        **{name: (x, y + _SEATED) for name, (x, y) in _HEAD.items()},
        "right elbow": (0.398, 0.462),
        "right wrist": (0.412, 0.575),
        "left elbow": (0.602, 0.462),
        "left wrist": (0.588, 0.575),
        "right hip": (0.455, 0.590),
        "right knee": (0.405, 0.665),
        "right ankle": (0.415, 0.860),
        "left hip": (0.545, 0.590),
        "left knee": (0.595, 0.665),
        "left ankle": (0.585, 0.860),
    },
}


def draw_pose(name: str, size: tuple[int, int]) -> Image.Image:
    """A pose of `POSES` as an RGB picture of that (width, height)."""
    width, height = size
    points = [(x * width, y * height) for x, y in (POSES[name][key] for key in KEYPOINTS)]
    radius = max(1.0, THICKNESS * min(size))
    picture = Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    for (first, second), colour in zip(LIMBS, COLOURS[: len(LIMBS)], strict=True):
        dim = tuple(int(value * LIMB_BRIGHTNESS) for value in colour)
        draw.polygon(_ellipse(points[first], points[second], radius), fill=dim)
    for (x, y), colour in zip(points, COLOURS, strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def _ellipse(first: Point, second: Point, radius: float) -> list[Point]:
    """The outline of an ellipse from one point to another, `radius` being its half width."""
    middle_x, middle_y = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
    half = math.dist(first, second) / 2
    angle = math.atan2(second[1] - first[1], second[0] - first[0])
    cos, sin = math.cos(angle), math.sin(angle)
    turns = (math.radians(degree) for degree in range(0, 360, 3))
    along = [(half * math.cos(turn), radius * math.sin(turn)) for turn in turns]
    return [(middle_x + u * cos - v * sin, middle_y + u * sin + v * cos) for u, v in along]

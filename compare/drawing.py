"""How a condition of each kind is drawn: a function of a name and (width, height)."""

from collections.abc import Callable

from PIL import Image

from .places import depth_map, outline_map, segmentation_map
from .poses import draw_pose

DRAWN: dict[str, Callable[[str, tuple[int, int]], Image.Image]] = {
    "openpose": draw_pose,
    "depth": depth_map,
    "seg": segmentation_map,
    "canny": outline_map,
}

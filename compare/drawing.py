"""How a condition of each kind is drawn, and all of them on one sheet.

`python -m compare.drawing FILE` draws the sheet of the README.
"""

import sys
from collections.abc import Callable

from PIL import Image

from .pairs import PAIRS
from .places import depth_map, outline_map, segmentation_map
from .poses import draw_pose

# A function of a name and (width, height) for each kind.
DRAWN: dict[str, Callable[[str, tuple[int, int]], Image.Image]] = {
    "openpose": draw_pose,
    "depth": depth_map,
    "seg": segmentation_map,
    "canny": outline_map,
}
_CELL, _GAP = 192, 6


def sheet() -> Image.Image:
    """Every pair's conditions, a pair in a column, the one in front above."""
    step = _CELL + _GAP
    picture = Image.new("RGB", (step * len(PAIRS) - _GAP, 2 * step - _GAP), "white")
    for column, pair in enumerate(PAIRS.values()):
        for row, condition in enumerate(pair.conditions((512, 512))):
            small = condition.resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            picture.paste(small, (column * step, row * step))
    return picture


if __name__ == "__main__":
    sheet().save(sys.argv[1])

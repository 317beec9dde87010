"""The drawn world's things and colours: shapes, regions, and how captions and maps name them."""

from __future__ import annotations

import torch

SIZE = 64

SHAPES = ("star", "ring", "cross", "heart", "triangle")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.12),
    "yellow": (0.96, 0.88, 0.08),
    "green": (0.08, 0.75, 0.18),
    "cyan": (0.06, 0.84, 0.88),
    "blue": (0.12, 0.18, 0.92),
    "pink": (0.93, 0.14, 0.78),
}
# Muted on purpose: chroma (max - min of R, G, B) tells an object from a landscape, see metrics.py.
REGIONS: dict[str, tuple[float, float, float]] = {
    "sky": (0.72, 0.81, 0.90),
    "hills": (0.47, 0.41, 0.36),
    "field": (0.50, 0.63, 0.38),
    "sand": (0.86, 0.78, 0.60),
    "water": (0.33, 0.46, 0.58),
}
REGION_NAMES = tuple(REGIONS)
REGION_PHRASES = {
    "sky": ("the sky", "a pale sky"),
    "hills": ("hills", "brown hills"),
    "field": ("a field", "a green field"),
    "sand": ("sand", "golden sand"),
    "water": ("water", "blue water"),
}
# Colours of the region map, one per region and the object's last, as in a segmentation palette.
MAP_COLOURS = torch.tensor(
    [
        (0.27, 0.51, 0.71),
        (0.45, 0.27, 0.14),
        (0.42, 0.56, 0.14),
        (0.96, 0.82, 0.40),
        (0.00, 0.16, 0.55),
        (0.86, 0.08, 0.24),
    ]
)

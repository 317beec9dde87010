"""The foreground mask beside its picture, for the gallery."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

_TINT = (255, 64, 64)
_OPACITY = 0.45


def mask_strip(picture: Image.Image, mask: Tensor) -> Image.Image:
    """The picture, the mask, and the mask over the picture, side by side.

    Args:
        picture: of any size and mode.
        mask: bool [h, w], as coarse as the attention that it was read from.
    """
    picture = picture.convert("RGB")
    pixels = np.asarray(mask.cpu(), dtype=np.uint8) * 255
    enlarged = Image.fromarray(pixels).resize(picture.size, Image.Resampling.NEAREST)
    strip = Image.new("RGB", (picture.width * 3, picture.height))
    strip.paste(picture, (0, 0))
    strip.paste(enlarged, (picture.width, 0))
    strip.paste(_overlay(picture, enlarged), (picture.width * 2, 0))
    return strip


def _overlay(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The foreground tinted and outlined, the rest a little darker."""
    tint = Image.new("RGB", picture.size, _TINT)
    inside = Image.blend(picture, tint, _OPACITY)
    outside = picture.point(lambda value: value * 0.7)
    both = Image.composite(inside, outside, mask)
    edge = ImageChops.difference(mask, mask.filter(ImageFilter.MinFilter(3)))
    return Image.composite(tint, both, edge)

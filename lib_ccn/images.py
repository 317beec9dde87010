"""Images that come in with the settings. Needs Pillow, which every host has."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .foreground import image_mask
from .settings import Settings, SettingsError


def decode_mask(settings: Settings) -> Tensor | None:
    """The painted mask of `settings.mask_image` as booleans [1, H, W], or None without one.

    Raises:
        SettingsError: the data is no image that Pillow can read.
    """
    data = settings.mask_image_bytes()
    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as opened:
            has_alpha = "A" in opened.getbands() or "transparency" in opened.info
            picture = ImageOps.exif_transpose(opened).convert("RGBA" if has_alpha else "RGB")
            pixels = torch.from_numpy(np.array(picture))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        allowed = f"a base64 image that Pillow can read ({error})"
        raise SettingsError("mask_image", settings.mask_image, allowed) from error
    return image_mask(pixels.movedim(-1, 0)[None].float() / 255)

"""Measures of a generated picture against its scene: object, colour, regions.

The drawn world is made for this: objects are saturated and landscapes muted, so that the chroma
(largest less smallest of R, G, B) of a pixel tells which of the two it belongs to. Pictures are
[B, 3, H, W] in [0, 1]; nothing here needs a network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import COLOURS, REGION_NAMES, REGIONS, Scenes

# Between the landscapes' largest chroma (0.26 to 0.33 as drawn) and an object's (above 0.45 within
# its rim); on drawn scenes 0.38 gives IoU 0.96, and 0.93 after a blur.
OBJECT_CHROMA = 0.38
COLOUR_PIXELS = 12
REGION_SHARE = 0.06
# Brightness says less about a region than hue: textures are shades of grey.
_BRIGHTNESS = 0.5
_MARGIN = 2


def object_mask(picture: Tensor) -> Tensor:
    """Where the object is, by chroma: bool [B, H, W]."""
    picture = picture.float()
    return picture.amax(1) - picture.amin(1) > OBJECT_CHROMA


def object_iou(picture: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of the picture's object with `mask` [B, H, W]: [B].

    1 where both are empty.
    """
    return mask_iou(object_mask(picture), mask)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two masks bool [B, ...]: [B]; 1 where both are empty."""
    union = (a | b).flatten(1).sum(1)
    return torch.where(union > 0, (a & b).flatten(1).sum(1) / union.clamp_min(1), 1.0)


def object_colour(picture: Tensor) -> list[str]:
    """The name in `COLOURS` that most object pixels are nearest to: B strings.

    "" where there are fewer than 12 object pixels. Hues are compared, not shades.
    """
    names, base = list(COLOURS), _pure(torch.tensor(list(COLOURS.values())))
    found = []
    for pixels, mask in zip(picture.float().movedim(1, -1), object_mask(picture), strict=True):
        if int(mask.sum()) < COLOUR_PIXELS:
            found.append("")
            continue
        nearest = torch.cdist(_pure(pixels[mask]), base.to(pixels.device)).argmin(-1)
        found.append(names[int(nearest.bincount(minlength=len(names)).argmax())])
    return found


def region_labels(picture: Tensor) -> Tensor:
    """Index into `REGION_NAMES` of the nearest region colour, after a 3x3 box blur: [B, H, W]."""
    blurred = F.avg_pool2d(F.pad(picture.float(), [1] * 4, mode="replicate"), 3, 1)
    base = _muted_brightness(torch.tensor(list(REGIONS.values()), device=picture.device))
    return (
        torch.cdist(_muted_brightness(blurred.movedim(1, -1)).flatten(1, 2), base)
        .argmin(-1)
        .unflatten(1, picture.shape[-2:])
    )


def region_accuracy(picture: Tensor, scenes: Scenes) -> Tensor:
    """The share of pixels outside the scene's own object whose region is right: [B].

    The object is widened by 2 pixels; what the picture shows as an object elsewhere is wrong.
    """
    right = (region_labels(picture) == scenes.regions) & ~object_mask(picture)
    window = 2 * _MARGIN + 1
    widened = F.max_pool2d(scenes.object_mask[:, None].float(), window, 1, _MARGIN)[:, 0]
    outside = widened < 0.5
    return (right & outside).flatten(1).sum(1) / outside.flatten(1).sum(1).clamp_min(1)


def regions_present(picture: Tensor) -> list[set[str]]:
    """The regions that fill at least 6 % of the picture, the object left out: B sets."""
    labels = region_labels(picture).masked_fill(object_mask(picture), len(REGION_NAMES))
    shares = F.one_hot(labels, len(REGION_NAMES) + 1).float().mean((1, 2))
    return [
        {name for name, share in zip(REGION_NAMES, row, strict=False) if share >= REGION_SHARE}
        for row in shares.tolist()
    ]


def _pure(colours: Tensor) -> Tensor:
    """Colours [..., 3] scaled so that their largest channel is 1: the shade goes, the hue stays."""
    return colours / colours.amax(-1, keepdim=True).clamp_min(1e-6)


def _muted_brightness(colours: Tensor) -> Tensor:
    """Colours [..., 3] as hue and lessened brightness, for distances."""
    mean = colours.mean(-1, keepdim=True)
    return colours - (1 - _BRIGHTNESS) * mean

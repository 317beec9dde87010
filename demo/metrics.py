"""Measures of a generated picture against its scene: object, colour, regions.

The drawn world is made for this: objects are saturated and landscapes muted, so that the chroma
(largest less smallest of R, G, B) of a pixel tells which of the two it belongs to. Pictures are
[B, 3, H, W] in [0, 1]; nothing here needs a network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import COLOURS, REGION_NAMES, REGIONS, Scenes, TwoObjects

# Between the landscapes' largest chroma (0.26 to 0.33 as drawn) and an object's (above 0.45 within
# its rim); on drawn scenes 0.38 gives IoU 0.96, and 0.93 after a blur.
OBJECT_CHROMA = 0.38
COLOUR_PIXELS = 12
REGION_SHARE = 0.06
# The usual constants of SSIM (Wang et al. 2004): an 11x11 Gaussian of deviation 1.5.
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
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
    names, base = list(COLOURS), pure(torch.tensor(list(COLOURS.values())))
    found = []
    for pixels, mask in zip(picture.float().movedim(1, -1), object_mask(picture), strict=True):
        if int(mask.sum()) < COLOUR_PIXELS:
            found.append("")
            continue
        nearest = torch.cdist(pure(pixels[mask]), base.to(pixels.device)).argmin(-1)
        found.append(names[int(nearest.bincount(minlength=len(names)).argmax())])
    return found


def apart(pictures: Tensor, masks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures of two objects with each alone: the half that is nearer to the other's is grey.

    `masks` [B, H, W] say where the two should be; nearer is to their centres.
    """
    height, width = pictures.shape[-2:]
    rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()
    distances = []
    for mask in masks:
        weight = mask.float()
        total = weight.sum((1, 2)).clamp_min(1)
        y, x = ((weight * line).sum((1, 2)) / total for line in (rows, columns))
        distances.append((rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2)
    first = (distances[0] <= distances[1])[:, None].to(pictures.device)
    grey = pictures.new_tensor(0.5)
    return torch.where(first, pictures, grey), torch.where(first, grey, pictures)


def region_labels(picture: Tensor) -> Tensor:
    """Index into `REGION_NAMES` of the nearest region colour, after a 3x3 box blur: [B, H, W]."""
    blurred = _blurred(picture)
    base = _muted_brightness(torch.tensor(list(REGIONS.values()), device=picture.device))
    return (
        torch.cdist(_muted_brightness(blurred.movedim(1, -1)).flatten(1, 2), base)
        .argmin(-1)
        .unflatten(1, picture.shape[-2:])
    )


def region_accuracy(picture: Tensor, scenes: Scenes | TwoObjects) -> Tensor:
    """The share of pixels outside the scene's own object whose region is right: [B].

    The object is widened by 2 pixels; what the picture shows as an object elsewhere is wrong.
    """
    right = (region_labels(picture) == scenes.regions) & ~object_mask(picture)
    return _mean_where(right.float(), ~widened(scenes.object_mask, _MARGIN))


def outside_mse(picture: Tensor, scenes: Scenes | TwoObjects) -> Tensor:
    """Mean squared error to the regions' own colours outside the scene's object: [B].

    The picture is blurred over 3x3, the object widened by 2 pixels, as in `region_accuracy`.
    """
    return _mean_where(_region_error(picture, scenes), ~widened(scenes.object_mask, _MARGIN))


def rim_mse(picture: Tensor, scenes: Scenes | TwoObjects) -> Tensor:
    """As `outside_mse`, in the band from 2 to 5 pixels around the object alone: [B].

    A halo or a seam between object and landscape shows here first.
    """
    band = widened(scenes.object_mask, 5) & ~widened(scenes.object_mask, _MARGIN)
    return _mean_where(_region_error(picture, scenes), band)


def ssim(picture: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures [B, C, H, W] in [0, 1]: [B].

    The mean over channels and over the windows that lie wholly in the picture; 1 for equal ones.

    Raises ValueError for shapes that differ, or sides under 11 pixels.
    """
    if picture.shape != reference.shape or min(picture.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"pictures must be alike and at least {_SSIM_WINDOW} pixels wide and high, not "
            f"{list(picture.shape)} and {list(reference.shape)}"
        )
    axis = torch.arange(_SSIM_WINDOW, dtype=torch.float64) - _SSIM_WINDOW // 2
    line = torch.exp(-axis.square() / (2 * _SSIM_SIGMA**2))
    line = (line / line.sum()).to(picture.device)

    def local(values: Tensor) -> Tensor:
        # An axis at a time: a Gaussian's 121 products are 22.
        down = F.conv2d(values.flatten(0, 1)[:, None], line[None, None, :, None])
        return F.conv2d(down, line[None, None, None])

    x, y = picture.double(), reference.double()
    mean_x, mean_y = local(x), local(y)
    var_x = local(x * x) - mean_x.square()
    var_y = local(y * y) - mean_y.square()
    covariance = local(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x.square() + mean_y.square() + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    return (luminance * structure).unflatten(0, picture.shape[:2]).flatten(1).mean(1).float()


def regions_present(picture: Tensor) -> list[set[str]]:
    """The regions that fill at least 6 % of the picture, the object left out: B sets."""
    labels = region_labels(picture).masked_fill(object_mask(picture), len(REGION_NAMES))
    shares = F.one_hot(labels, len(REGION_NAMES) + 1).float().mean((1, 2))
    return [
        {name for name, share in zip(REGION_NAMES, row, strict=False) if share >= REGION_SHARE}
        for row in shares.tolist()
    ]


def _blurred(picture: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(picture.float(), [1] * 4, mode="replicate"), 3, 1)


def widened(mask: Tensor, by: int) -> Tensor:
    """Masks bool [B, H, W] grown by `by` pixels each way."""
    return F.max_pool2d(mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0.5


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)


def _region_error(picture: Tensor, scenes: Scenes | TwoObjects) -> Tensor:
    """Squared distance of the blurred picture to its regions' own colours, per pixel [B, H, W]."""
    base = torch.tensor(list(REGIONS.values()))[scenes.regions].movedim(-1, 1)
    return (_blurred(picture) - base.to(picture.device)).square().mean(1)


def pure(colours: Tensor) -> Tensor:
    """Colours [..., 3] scaled so that their largest channel is 1: the shade goes, the hue stays."""
    return colours / colours.amax(-1, keepdim=True).clamp_min(1e-6)


def _muted_brightness(colours: Tensor) -> Tensor:
    """Colours [..., 3] as hue and lessened brightness, for distances."""
    mean = colours.mean(-1, keepdim=True)
    return colours - (1 - _BRIGHTNESS) * mean

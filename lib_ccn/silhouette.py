"""Foreground masks from pictures: a condition's silhouette, and a painted mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Silhouettes: longest side worked at, colour distance of a drawn pixel, gap closed (part of the
# longest side, each way), and the stretch of the picture's edge taken for a cut through an object.
_WORKING_SIZE = 256
_DRAWN = 0.1
_GAP = 0.015
_CUT = 0.25


def silhouette(image: Tensor) -> Tensor:
    """What a condition image [B, C, H, W] in [0, 1] shows, filled: boolean [B, H, W].

    Drawn is what differs from the background, the median colour of the picture's edge. An outline
    is filled, gaps of about 3 % of the longer side in it included; open strokes stay strokes. An
    outline cut off by the edge of the picture is closed along that edge.
    """
    edge = torch.cat((image[..., 0], image[..., -1], image[..., 0, :], image[..., -1, :]), -1)
    background = edge.float().median(-1).values[..., None, None]
    drawn = ((image.float() - background).abs().amax(1, keepdim=True) > _DRAWN).float()
    height, width = image.shape[-2:]
    scale = min(1.0, _WORKING_SIZE / max(height, width))
    small = F.adaptive_max_pool2d(drawn, (max(1, round(height * scale)), round(width * scale) or 1))
    reach = max(1, round(_GAP * max(small.shape[-2:])))
    margin = 2 * reach + 1
    closed = _grow(F.pad(_close_edge(small), [margin] * 4), reach)
    filled = 1 - _grow(_flood(closed), reach)[..., margin:-margin, margin:-margin]
    return F.interpolate(filled, size=(height, width), mode="nearest")[:, 0] > 0.5


def image_mask(image: Tensor) -> Tensor:
    """A painted mask [B, C, H, W] in [0, 1], C = 1..4, as booleans [B, H, W].

    White is foreground (luminance above one half). Where a picture has an alpha channel that is
    not opaque throughout, alpha decides instead.
    """
    image = image.float()
    channels = image.shape[1]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"image must have 1 to 4 channels, not {channels}")
    colour = image[:, :3] if channels > 2 else image[:, :1].expand(-1, 3, -1, -1)
    mask = torch.einsum("bchw,c->bhw", colour, image.new_tensor([0.299, 0.587, 0.114])) > 0.5
    if channels in (2, 4):
        alpha = image[:, -1] > 0.5
        mask = torch.where(alpha.all(-1).all(-1)[:, None, None], mask, alpha)
    return mask


def _grow(mask: Tensor, reach: int) -> Tensor:
    return F.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)


def _flood(walls: Tensor) -> Tensor:
    """Everything that the picture's edge reaches without crossing `walls`."""
    free = 1 - walls
    outside = torch.zeros_like(walls)
    outside[..., 0, :] = outside[..., -1, :] = outside[..., :, 0] = outside[..., :, -1] = 1
    outside *= free
    while True:
        before = outside
        for _ in range(16):
            outside = _grow(outside, 1) * free
        if torch.equal(before, outside):
            return outside


def _close_edge(drawn: Tensor) -> Tensor:
    """Draw along the picture's edge where it cuts through an object: short runs between strokes."""
    height, width = drawn.shape[-2:]
    reach = round(_CUT * max(height, width) / 2)
    if min(height, width) < 3 or not reach:
        return drawn
    across, down = range(width), range(1, height - 1)
    ys = [0] * width + [*down] + [height - 1] * width + [*reversed(down)]
    xs = [*across] + [width - 1] * len(down) + [*reversed(across)] + [0] * len(down)
    ring = F.pad(drawn[:, :, ys, xs], [2 * reach] * 2, mode="circular")
    window = 2 * reach + 1
    ring = -F.max_pool1d(-F.max_pool1d(ring[:, 0], window, 1), window, 1)
    drawn = drawn.clone()
    drawn[:, 0, ys, xs] = ring
    return drawn

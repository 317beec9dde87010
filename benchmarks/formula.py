"""The paper's fusion in float64, and whether a fused residual follows it.

Equations 1-4 and 6-8 as they stand, on whole tensors, for residuals too large for the tests' own
oracle in plain Python. What is decided by less than `MARGIN` may fall either way in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 1e-4


@torch.no_grad()
def wrong_pixels(units: Sequence[Tensor], fused: Tensor, delta: float) -> tuple[int, int]:
    """Pixels of a residual [B, C, H, W] that PixFusion would not give, and those asked."""
    values = torch.stack([unit.double() for unit in units])
    centred = values - values.mean(2, keepdim=True)
    sigma = centred.square().mean(2).sqrt()
    score = _smooth(sigma / sigma.sum((-2, -1), keepdim=True))
    features = torch.stack([_smooth(unit) for unit in centred])
    winner = score.argmax(0)
    best = score.amax(0)
    of_winner = features.gather(0, winner[None, :, None].expand_as(features[:1]))
    cosine = F.cosine_similarity(features, of_winner, dim=2, eps=1e-30)
    numbers = torch.arange(len(units), device=fused.device).view(-1, 1, 1, 1)
    is_winner = numbers == winner
    member = is_winner | (cosine > delta)
    close = ((best - score) < MARGIN * best) | ((cosine - delta).abs() < MARGIN)
    sure = ~(close & ~is_winner).any(0)
    wanted = (values * member[:, :, None]).sum(0) / member.sum(0)[:, None]
    right = _is_near(fused, wanted).all(1)
    return int((sure & ~right).sum()), int(sure.sum())


@torch.no_grad()
def wrong_channels(units: Sequence[Tensor], fused: Tensor, delta: float) -> tuple[int, int]:
    """Channels of a residual [B, C, H, W] that ChannelFusion would not give, and those asked."""
    values = torch.stack([unit.double() for unit in units])
    deviation = values.flatten(3).std(3, correction=0)
    ratio = deviation / deviation.amax(0)
    weights = deviation * (ratio >= delta)
    wanted = (values * (weights / weights.sum(0))[..., None, None]).sum(0)
    sure = ~((ratio - delta).abs() < MARGIN).any(0)
    right = _is_near(fused, wanted).flatten(2).all(2)
    return int((sure & ~right).sum()), int(sure.sum())


def _is_near(got: Tensor, wanted: Tensor) -> Tensor:
    tolerance = 4 * torch.finfo(got.dtype).eps
    scale = wanted.abs().amax(1, keepdim=True)
    return (got.double() - wanted).abs() <= tolerance * scale


def _smooth(planes: Tensor) -> Tensor:
    row = planes.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(planes.shape[1], 1, 3, 3)
    return F.conv2d(planes, kernel, padding=1, groups=planes.shape[1])

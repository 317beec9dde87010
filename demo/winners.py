"""Why a unit wins: what PixFusion and ChannelFusion compare, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_ccn.fusion import smooth, smoothed_deviation


@torch.no_grad()
def agreement(residuals: Sequence[Tensor], best: Tensor | None = None) -> Tensor:
    """The largest cosine (equation 3) of another unit with the winner: float32 [B, H, W].

    `best` [B, H, W] numbers the winners; None finds them.
    """
    if best is None:
        best = torch.stack([smoothed_deviation(unit) for unit in residuals]).argmax(0)
    centred = [smooth(unit.float() - unit.float().mean(1, keepdim=True)) for unit in residuals]
    cosines = []
    for i, unit in enumerate(centred):
        others = [F.cosine_similarity(unit, o, dim=1) for j, o in enumerate(centred) if j != i]
        cosines.append(torch.stack(others).amax(0))
    return torch.stack(cosines).gather(0, best[None])[0]


@torch.no_grad()
def channel_ratio(first: Tensor, second: Tensor) -> Tensor:
    """R of equation 7 for each channel of two residuals [B, C, H, W]: float32 [B, C]."""
    a, b = (unit.float().std((2, 3), correction=0) for unit in (first, second))
    largest = torch.maximum(a, b)
    return torch.where(largest > 0, 1 - (a - b).abs() / largest.clamp_min(1e-30), 1.0)

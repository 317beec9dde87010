"""An image-quality score for the drawn world: NIQE's features and distance, fitted to its scenes.

NIQE (Mittal, Soundararajan, Bovik, IEEE SPL 2013) compares the statistics of locally normalised
luminance with those of pristine photographs. Pictures of 64x64 in flat colours are far from any
photograph, so the pristine pictures are drawn scenes here. Real models are scored by pyiqa's NIQE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE, _SIGMA = 7, 7 / 6
_SHAPES = torch.arange(0.2, 10.0, 0.001, dtype=torch.float64)
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True)
class Naturalness:
    """Mahalanobis distance of a picture's features from those of pristine pictures."""

    mean: Tensor
    precision: Tensor

    @classmethod
    def fitted(cls, pictures: Tensor) -> Naturalness:
        """Fitted to pristine pictures [N, 3, H, W] in [0, 1], N well above the 36 features."""
        found = features(pictures)
        return cls(found.mean(0), torch.linalg.pinv(torch.cov(found.T)))

    def __call__(self, pictures: Tensor) -> Tensor:
        """The distance of each picture [B, 3, H, W] in [0, 1]: [B]; lower is more natural."""
        away = features(pictures) - self.mean
        return ((away @ self.precision) * away).sum(1).clamp_min(0).sqrt().float()


def features(pictures: Tensor) -> Tensor:
    """The 36 features of NIQE, 18 at each of two scales: float64 [B, 36]."""
    grey = torch.einsum("bchw,c->bhw", pictures.double().cpu() * 255, _luma())[:, None]
    scales = (grey, F.interpolate(grey, scale_factor=0.5, mode="bicubic", antialias=True))
    return torch.cat([_features(scale) for scale in scales], 1)


def _luma() -> Tensor:
    return torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


def _features(grey: Tensor) -> Tensor:
    normal = _normalised(grey)
    found = [*_generalised_gaussian(normal)]
    for down, right in _NEIGHBOURS:
        found += _asymmetric_gaussian(normal * normal.roll((down, right), (1, 2)))
    return torch.stack(found, 1)


def _normalised(grey: Tensor) -> Tensor:
    """(I - local mean) / (local deviation + 1): [B, H, W]."""
    axis = torch.arange(_SIDE, dtype=torch.float64) - _SIDE // 2
    line = torch.exp(-axis.square() / (2 * _SIGMA**2))
    line = (line / line.sum())[None, None, None]

    def local(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, line.mT), line)

    padded = F.pad(grey, [_SIDE // 2] * 4, mode="replicate")
    mean = local(padded)
    variance = (local(padded.square()) - mean.square()).clamp_min(0)
    return ((grey - mean) / (variance.sqrt() + 1))[:, 0]


def _generalised_gaussian(values: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and variance of a symmetric generalised Gaussian, by moments: [B] each."""
    flat = values.flatten(1)
    square, magnitude = flat.square().mean(1), flat.abs().mean(1)
    return _shape_of(magnitude.square() / square.clamp_min(1e-12)), square


def _asymmetric_gaussian(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape, mean and both variances of an asymmetric generalised Gaussian: [B] each."""
    flat = values.flatten(1)
    left, right = (
        (flat.square() * side).sum(1) / side.sum(1).clamp_min(1)
        for side in ((flat < 0).double(), (flat >= 0).double())
    )
    gamma = left.sqrt() / right.sqrt().clamp_min(1e-6)
    ratio = flat.abs().mean(1).square() / flat.square().mean(1).clamp_min(1e-12)
    ratio = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1).square()
    shape = _shape_of(ratio)
    lg = torch.lgamma
    spread = (lg(2 / shape) - 0.5 * (lg(1 / shape) + lg(3 / shape))).exp()
    return shape, (right.sqrt() - left.sqrt()) * spread, left, right


def _shape_of(ratio: Tensor) -> Tensor:
    """The shape whose E[|x|]^2 / E[x^2] is nearest: [B]."""
    lg = torch.lgamma
    table = (2 * lg(2 / _SHAPES) - lg(1 / _SHAPES) - lg(3 / _SHAPES)).exp()  # rises with the shape
    return _SHAPES[torch.searchsorted(table, ratio.contiguous()).clamp_max(len(_SHAPES) - 1)]

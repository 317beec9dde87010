"""What the rules of `rules.py` compare: the statistics of residuals, whatever their range.

Statistics are per sample, in float32, with the population's deviation. What is not finite is left
out, never spread; what is too large or too small for float32's squares is brought to a scale of
its own. An accelerator is asked nothing: it would have to finish first what it has still to do.
Only torch is imported.
"""

from __future__ import annotations

import functools
import itertools
import math
import numbers
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import devices

# Of each of N units, the layers that are fused together: residuals [B, C, H, W] of one shape.
Units = Sequence[Sequence[Tensor]]

# No deviation of a sample that is in range (`in_range`) is smaller, but 0.
TINY = 1e-30
# Between these, the squares of a sample's deviations neither vanish nor overflow in float32.
_TOTAL_RANGE = (1e-12, 1e18)
# A CPU takes so many elements at a time, so that what is made of them stays in its cache.
_CACHE_ELEMENTS = 1 << 18


@torch.no_grad()
def smooth(map: Tensor) -> Tensor:
    """Convolve each plane of [..., H, W] with G = [[1,2,1],[2,4,2],[1,2,1]] / 16, zero padded.

    Computed and returned in float32.
    """
    if map.ndim == 4 and map.shape[1] > 1:
        channels = map.shape[1]
        kernel = _gaussian(map.device, channels)
        with _without_autocast(map.device):
            return F.conv2d(map.float().contiguous(), kernel, padding=1, groups=channels)
    # G is the mean of 2x2 twice. A convolution of one channel would go to cuDNN, which may round
    # to TF32.
    planes = map.float()
    planes = planes if map.ndim == 4 else planes.reshape(1, -1, *map.shape[-2:])
    smoothed = F.avg_pool2d(F.avg_pool2d(planes, 2, 1, padding=1), 2, 1)
    return smoothed if map.ndim == 4 else smoothed.reshape(map.shape)


@functools.lru_cache(maxsize=32)
def _gaussian(device: torch.device, channels: int) -> Tensor:
    """G for each channel, made on the device, because a copy to it would wait."""
    ramp = 2 - (torch.arange(3, device=device, dtype=torch.float32) - 1).abs()
    return (ramp[:, None] * ramp / 16).repeat(channels, 1, 1, 1)


# --- What the rules compare ---


class Pixels(NamedTuple):
    """What the pixels of N units come to, summed over channels: maps of one channel, float32.

    Attributes:
        units: what can be selected, of each [B, C, H, W].
        deviation, lengths: [N * B, 1, H, W], of the centred features and of the filtered ones;
            each sample's to a scale of its own.
        products: [B, 1, H, W] of each pair of units, of the filtered features.
        holes: bool [N * B, 1, H, W], where a unit is left out; None for nowhere.
    """

    units: Sequence[Tensor]
    deviation: Tensor
    lengths: Tensor
    products: dict[tuple[int, int], Tensor]
    holes: Tensor | None


def compared(units: Units, filtered: Callable[[Tensor], Tensor]) -> Pixels:
    """The pixels of units, and of their features as `filtered` gives them."""
    if is_on_cpu(units):
        each = each_unit(units)
        pixels = _pixels(each, each, filtered, None)
        if _is_ordinary(each, pixels.deviation):
            return pixels
    together = _together(units)
    peak = torch.linalg.vector_norm(together, math.inf, 1, keepdim=True, dtype=wide(together.dtype))
    holes = ~(peak < math.inf)  # NaN is less than nothing
    together.masked_fill_(holes, 0)
    values = in_range(together, lambda: peak.masked_fill_(holes, 0).amax((2, 3), keepdim=True))
    return _pixels([values], together.chunk(len(units)), filtered, holes)


def _pixels(
    values: Sequence[Tensor],
    units: Sequence[Tensor],
    filtered: Callable[[Tensor], Tensor],
    holes: Tensor | None,
) -> Pixels:
    """The statistics of `values`, all units in one tensor or each in its own."""
    centred, deviations = zip(*(_centred(part, (1,)) for part in values), strict=True)
    features = [filtered(part) for part in centred]
    lengths = [_norm(part, (1,)) for part in features]
    each = features if len(features) == len(units) else features[0].chunk(len(units))
    products = {
        (i, j): _dot(each[i], each[j]) for i, j in itertools.combinations(range(len(units)), 2)
    }
    return Pixels(units, joined(deviations), joined(lengths), products, holes)


def compared_channels(
    units: Units,
) -> tuple[Sequence[Tensor] | Tensor, Tensor, Tensor | None]:
    """The units, their deviations [N, B, C, 1, 1], and which entries are finite (None: all)."""
    if is_on_cpu(units):
        each = each_unit(units)
        deviation = torch.stack([_deviation(unit, (2, 3)) for unit in each])
        if _is_ordinary(each, deviation.flatten(0, 1)):
            return each, deviation, None
    known, finite = finite_only(units)
    # The units' deviations are compared with each other, so that one scale serves them all.
    values = in_range(known, lambda: known.abs().amax((0, 3, 4), keepdim=True))
    count = finite.sum((3, 4), keepdim=True).clamp_min(1)
    mean = values.sum((3, 4), keepdim=True) / count
    filled = torch.where(finite, values, mean)  # what is left out adds no deviation
    return known, _deviation(filled, (3, 4)), finite


def normalised(maps: Tensor) -> Tensor:
    """Maps divided by their sums over H, W."""
    return maps / maps.sum((-2, -1), keepdim=True).clamp_min(TINY)


def _centred(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values less their mean over `dims`, and their deviation to a constant factor, in float32.

    Where the values are constant both are exactly zero. On a CPU `values` stay as they are.
    """
    if devices.is_cuda(values.device):  # in one pass, and those of equal numbers are exact
        deviation, mean = torch.std_mean(values, dims, correction=0, keepdim=True)
        return values.sub_(mean), deviation
    # A mean of equal numbers can be off by a rounding; the distances to one of them cannot.
    pilot = values
    for dim in dims:
        pilot = pilot.narrow(dim, 0, 1)
    centred = (values - pilot.to(wide(values.dtype))).float()
    centred.sub_(centred.mean(dims, keepdim=True))
    return centred, _norm(centred, dims)


def _deviation(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    if devices.is_cuda(values.device):
        return torch.std(values, dims, correction=0, keepdim=True)
    return _centred(values, dims)[1]


def _norm(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    if not devices.is_cpu(values.device):
        return torch.linalg.vector_norm(values, 2, dims, keepdim=True)
    if dims == (1,):
        return _dot(values, values).sqrt_()
    return values.square().sum(dims, keepdim=True).sqrt_()


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Sum over channels of the products."""
    if not devices.is_cpu(one.device):
        return (one * other).sum(1, keepdim=True)
    # A few channels at a time, so that the products stay in the cache.
    size = max(1, _CACHE_ELEMENTS * one.shape[1] // one.numel())
    parts = zip(one.split(size, 1), other.split(size, 1), strict=True)
    return functools.reduce(operator.iadd, ((a * b).sum(1, keepdim=True) for a, b in parts))


def blend(units: Sequence[Tensor] | Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Weighted sum over units, accumulated in float32 or wider, in the units' dtype."""
    if isinstance(units, Tensor) and isinstance(weights, Tensor):
        return (units * weights).sum(0).to(units.dtype)
    accumulated = wide(units[0].dtype)
    if isinstance(weights, Tensor):
        total = units[0] * weights[0]
        for unit, weight in zip(units[1:], weights[1:], strict=True):
            total = total.addcmul_(unit, weight)
        return total.to(units[0].dtype)
    terms = (unit.to(accumulated) * weight for unit, weight in zip(units, weights, strict=True))
    return functools.reduce(operator.add, terms).to(units[0].dtype)


# --- What is not finite, too large or too small ---


def is_on_cpu(units: Units) -> bool:
    """Whether there is no accelerator to wait for, so that values may be asked for.

    A CPU is asked whether anything is to be left out or scaled, which costs less than to do it.
    """
    return devices.is_cpu(units[0][0].device)


def _is_ordinary(units: Sequence[Tensor], deviation: Tensor) -> bool:
    """Whether the deviations [N * B, ...] of units on a CPU can be used as they are."""
    totals = deviation.flatten(1).sum(1)
    low, high = _TOTAL_RANGE
    if not bool((totals < high).all()):  # NaN is in no range
        return False
    samples = (sample for unit in units for sample in unit)
    silent = [s for s, total in zip(samples, totals.tolist(), strict=True) if total <= low]
    return all(bool(sample.amax() == sample.amin()) for sample in silent)


def each_unit(units: Units) -> Sequence[Tensor]:
    """One tensor of each unit, its layers one after the other in the batch."""
    return [joined(unit) for unit in units]


def in_range(values: Tensor, peak: Callable[[], Tensor]) -> Tensor:
    """Finite values in float32, of which no square vanishes beside the peak's, nor overflows."""
    if values.dtype is torch.float16:  # none of its numbers' squares does in float32
        return values.float()
    scale = peak().to(wide(values.dtype))
    return (values / scale.clamp_min(torch.finfo(scale.dtype).tiny)).float()


def finite_only(units: Units) -> tuple[Tensor, Tensor]:
    """Units [N, B, C, H, W], 0 where not finite; which entries are finite."""
    values = _together(units).unflatten(0, (len(units), -1))
    known = values.nan_to_num(0.0, 0.0, 0.0)
    return known, known == values


def _together(units: Units) -> Tensor:
    """A tensor of its own of all units' layers, one after the other in the batch."""
    return torch.cat([layer for unit in units for layer in unit])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after the other in the batch."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What to accumulate such numbers in: float32, or float64 itself."""
    return dtype if dtype is torch.float64 else torch.float32


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    try:
        return torch.autocast(device.type, enabled=False)
    except (RuntimeError, AssertionError):  # a device that knows no autocast
        return nullcontext()


def check_residuals(residuals: Sequence[Tensor], name: str = "residuals") -> None:
    """Raise TypeError or ValueError, naming the tensor, if they cannot be fused."""
    if len(residuals) < 2:
        raise ValueError(f"{name} has {len(residuals)} tensors; allowed: 2 or more")
    for index, unit in enumerate(residuals):
        if not isinstance(unit, Tensor) or not unit.is_floating_point():
            kind = getattr(unit, "dtype", type(unit).__name__)
            raise TypeError(f"{name}[{index}] is {kind}; allowed: a tensor of a floating dtype")
        shape, like = tuple(unit.shape), residuals[0]
        if unit.ndim != 4 or unit.numel() == 0:
            raise ValueError(f"{name}[{index}] has shape {shape}; allowed: [B, C, H, W], not empty")
        if unit.shape != like.shape:
            raise ValueError(f"{name}[{index}] has shape {shape}; allowed: {tuple(like.shape)}")
        if unit.dtype != like.dtype:
            raise TypeError(f"{name}[{index}] has dtype {unit.dtype}; allowed: {like.dtype}")
        if unit.device != like.device:
            raise ValueError(f"{name}[{index}] is on {unit.device}; allowed: {like.device}")


def checked_delta(delta: float) -> float:
    """Delta as a float; raises TypeError or ValueError for what is no number from 0 to 1."""
    if isinstance(delta, bool) or not isinstance(delta, numbers.Real):
        raise TypeError(f"delta is {delta!r}; allowed: a number from 0 to 1")
    if not 0 <= delta <= 1:
        raise ValueError(f"delta is {delta!r}; allowed: 0 to 1")
    return float(delta)

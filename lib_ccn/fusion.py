"""Fusion of ControlNet residuals: which unit's residual wins where.

Cross-ControlNet (ICLR 2026), equations 1-4 (PixFusion) and 6-8 (ChannelFusion), and the rules
they are compared with. Pure functions of tensors: no host, no state, no gradient. Any floating
dtype, strides and device go in; the result has the input's dtype and device.

Common to every rule but the sum:

* Statistics are per sample, in float32, with the population's deviation.
* What is not finite is left out, never spread. PixFusion and MaxFusion leave out the unit's
  whole pixel: it adds no deviation and neither wins nor is averaged while another unit is
  finite there. ChannelFusion and the mean leave out the single entry: their rule applies to the
  units that are finite there. Where no unit is finite the result is 0.
* A unit that is zero or constant has no deviation. A tie goes to the earlier unit.
* What is selected equals the winner's value exactly (but for the sign of a zero).
* Who won is told on request: `decided` takes the decision, int8 [B, H, W], or [B, C] from
  ChannelFusion: a unit's place, or `AVERAGED` where several units have a share.
* An accelerator is asked nothing, not even whether there is anything to leave out: it would have
  to finish first what it has still to do. Only a CPU is (`_is_on_cpu`).
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

MODES = ("sum", "mean", "max", "pix", "pix+channel")
AVERAGED = -1  # instead of a winner's number, in a decision

Decided = Callable[[Tensor], None]  # takes a decision
# Of each of N units, the layers that are fused together: residuals [B, C, H, W] of one shape.
Units = Sequence[Sequence[Tensor]]

# No deviation of a sample that is in range (`_in_range`) is smaller, but 0.
_TINY = 1e-30
_NEGLIGIBLE = 1e-12  # a weight beside a larger one, in float32
# Layers of one size are fused together up to so many elements, to save an accelerator launches.
_GROUP_ELEMENTS = {"cpu": 0, "accelerator": 1 << 24}
# Between these, the squares of a sample's deviations neither vanish nor overflow in float32.
_TOTAL_RANGE = (1e-12, 1e18)
# Where torch's mean and deviation come in one pass, and those of equal numbers are exact.
_RUNNING_MEAN = ("cuda", "meta")
# A CPU takes so many elements at a time, so that what is made of them stays in its cache.
_CACHE_ELEMENTS = 1 << 18


class _Fused(NamedTuple):
    """A residual [B, C, H, W], and who won in it: worked out when asked; None if nobody does."""

    residual: Tensor
    decision: Callable[[], Tensor] | None = None


# --- The rules ---


def _pix(units: Units, delta: float) -> _Fused:
    """PixFusion, equations 1 to 4."""
    pixels = _compared(units, smooth)
    score = smooth(_normalised(pixels.deviation))
    return _strongest(pixels, score, delta)


def _max(units: Units, delta: float) -> _Fused:
    """MaxFusion's output rule: the variance for the deviation, and nothing is smoothed."""
    pixels = _compared(units, lambda features: features)
    score = _normalised(_normalised(pixels.deviation).square())
    return _strongest(pixels, score, delta)


def _strongest(pixels: _Pixels, score: Tensor, delta: float) -> _Fused:
    """Equation 4: the winner, or its mean with every unit whose cosine with it exceeds delta."""
    count = len(pixels.units)
    needed = delta if delta < 1 else 2.0  # no cosine exceeds 1, whatever its rounding
    if pixels.holes is not None:
        score.masked_fill_(pixels.holes, -1.0)
        pixels.lengths.masked_fill_(pixels.holes, math.inf)
    scores, lengths = score.chunk(count), pixels.lengths.chunk(count)
    # No division: a zero length compares 0 > 0, and beside an infinite one nothing is greater.
    agree = {
        (i, j): torch.addcmul(product, lengths[i], lengths[j], value=-needed) > 0
        for (i, j), product in pixels.products.items()
    }
    if count == 2:
        (first, second), wins, both = pixels.units, scores[1] > scores[0], agree[0, 1]
        # No `lerp` with weights 0, 0.5 and 1: on some devices its ends are no copies.
        stronger = torch.where(wins, second, first)
        fused = torch.where(both, torch.lerp(first, second, 0.5), stronger)
        return _Fused(fused, lambda: _decision(wins, both)[:, 0])
    winner = torch.stack(scores).argmax(0)
    is_winner = [winner == i for i in range(count)]
    members = list(is_winner)
    for (i, j), both in agree.items():
        members[i] = members[i] | both & is_winner[j]
        members[j] = members[j] | both & is_winner[i]
    chosen = torch.stack(members)
    shared = chosen.sum(0)
    fused = _blend(pixels.units, chosen.to(_wide(pixels.units[0].dtype)) / shared)
    return _Fused(fused, lambda: _decision(winner, shared > 1)[:, 0])


def _channel(units: Units, delta: float) -> _Fused:
    """ChannelFusion, equations 6 to 8."""
    entries, deviation, finite = _compared_channels(units)
    # Weights are the deviations; where there is none at all they are equal. A unit that is left
    # out has no weight, and those that are there are compared with each other.
    weights = deviation.clamp_min(_TINY)
    if finite is not None:
        weights = weights * finite
    weights = weights * (weights >= weights.amax(0) * max(delta, _NEGLIGIBLE))
    weights = weights / weights.sum(0).clamp_min(_TINY)

    def decision() -> Tensor:
        several = (weights > 0).flatten(3).any(3).sum(0) > 1
        return _decision(deviation[..., 0, 0].argmax(0), several)

    return _Fused(_blend(entries, weights), decision)


def _mean(units: Units, delta: float) -> _Fused:
    """The average over the units that are finite."""
    if _is_on_cpu(units):
        fused = _blend(_each(units), [1 / len(units)] * len(units))
        # A sum that is not finite tells of an entry, or of numbers near the limit.
        if bool(torch.isfinite(fused.sum(dtype=torch.float32))):
            return _Fused(fused)
    known, finite = _finite_only(units)
    shares = finite.to(_wide(known.dtype)) / finite.sum(0).clamp_min(1)
    return _Fused(_blend(known, shares))


_RULES: dict[str, Callable[[Units, float], _Fused]] = {
    "mean": _mean,
    "max": _max,
    "pix": _pix,
    "channel": _channel,
}


# --- What others call ---


def sum_fusion(residuals: Sequence[Tensor]) -> Tensor:
    """Return the host's own left-to-right sum, in its dtype. Takes and raises as `pix_fusion`."""
    _check_residuals(residuals)
    return functools.reduce(operator.add, residuals)


def mean_fusion(residuals: Sequence[Tensor]) -> Tensor:
    """Return the average over units, entry by entry. Takes and raises as `pix_fusion`."""
    return _fuse_one("mean", residuals, 0.0, None)


def pix_fusion(
    residuals: Sequence[Tensor], delta: float = 0.7, decided: Decided | None = None
) -> Tensor:
    """Fuse per pixel by smoothed channel deviation (equations 1-4).

    At each pixel the unit with the largest `smoothed_deviation` wins. It is averaged with every
    unit whose smoothed, channel-centred residual has a cosine above `delta` with the winner's;
    for two units that is the paper's rule.

    Args:
        residuals: N >= 2 tensors [B, C, H, W], one per unit, alike in shape, dtype and device.
        delta: agreement needed for averaging, 0..1. At 1 nothing is averaged.
        decided: takes who won.

    Returns:
        The fused residual [B, C, H, W].

    Raises:
        TypeError: not tensors, not floating point, dtypes that differ, `delta` not a number.
        ValueError: N < 2, not 4-D, empty, shapes or devices that differ, `delta` outside 0..1.
    """
    return _fuse_one("pix", residuals, delta, decided)


def max_fusion(
    residuals: Sequence[Tensor], delta: float = 0.7, decided: Decided | None = None
) -> Tensor:
    """Fuse by MaxFusion's output rule (Nair et al., ECCV 2024).

    As `pix_fusion`, with the normalised channel variance in place of the deviation and without
    smoothing. Arguments, result and errors are those of `pix_fusion`.
    """
    return _fuse_one("max", residuals, delta, decided)


def channel_fusion(
    residuals: Sequence[Tensor], delta: float = 0.7, decided: Decided | None = None
) -> Tensor:
    """Fuse per channel by spatial deviation (equations 6-8).

    In each channel, the units whose deviation over H, W is at least `delta` times the largest
    (R >= delta) are blended with weights proportional to it; if all are 0, the result is the
    mean. Arguments, result and errors are those of `pix_fusion`; `delta` = 0 blends every unit,
    1 only those that tie.
    """
    return _fuse_one("channel", residuals, delta, decided)


def fuse_residuals(
    residuals_by_unit: Sequence[Sequence[Tensor]],
    mode: str,
    delta: float = 0.7,
    decided: Callable[[int, Tensor], None] | None = None,
) -> list[Tensor]:
    """Fuse the whole output of N >= 2 ControlNets into one tensor per residual.

    Args:
        residuals_by_unit: for each unit its residuals in execution order, the middle one last.
        mode: one of `MODES`. "pix+channel" is the paper's: ChannelFusion on the last residual,
            PixFusion on the others. The other modes use one rule throughout.
        delta: see `pix_fusion`; unused by "sum" and "mean".
        decided: takes each residual's place and who won there; not asked by "sum" and "mean",
            in which nobody wins.

    Raises as `pix_fusion`, and ValueError for an unknown mode or units of unequal length.
    """
    delta = _checked_delta(delta)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")
    lengths = [len(unit) for unit in residuals_by_unit]
    if len(lengths) < 2:
        raise ValueError(f"residuals_by_unit has {len(lengths)} units; allowed: 2 or more")
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"residuals_by_unit has {lengths} residuals; allowed: equal, 1 or more")
    layers = list(zip(*residuals_by_unit, strict=True))
    for index, layer in enumerate(layers):
        _check_residuals(layer, f"residual {index} by unit")
    if mode == "sum":
        return [sum_fusion(layer) for layer in layers]
    down, middle = (layers[:-1], layers[-1:]) if mode == "pix+channel" else (layers, [])
    fused = _fuse("pix" if middle else mode, down, delta, decided)
    if middle:
        tell = decided and (lambda _, decision: decided(len(down), decision))
        fused += _fuse("channel", middle, delta, tell)
    return fused


@torch.no_grad()
def smoothed_deviation(residual: Tensor) -> Tensor:
    """Return G * normalised sigma [B, H, W], float32: where this unit has something to say.

    `residual` is [B, C, H, W]; sigma is the deviation over channels, divided by its sum over
    the map (equations 1-2); a unit without deviation gives zeros.
    """
    _check_residuals([residual, residual], "residual")
    return smooth(_normalised(_compared([[residual]], lambda features: features).deviation))[:, 0]


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


# --- Around the rules: layers together ---


def _fuse_one(
    rule: str, residuals: Sequence[Tensor], delta: float, decided: Decided | None
) -> Tensor:
    _check_residuals(residuals)
    delta = _checked_delta(delta)
    tell = None if decided is None else (lambda _, decision: decided(decision))
    return _fuse(rule, [residuals], delta, tell)[0]


@torch.no_grad()
def _fuse(
    rule: str,
    layers: Sequence[Sequence[Tensor]],
    delta: float,
    decided: Callable[[int, Tensor], None] | None,
) -> list[Tensor]:
    """Apply a rule to each layer's units, layers of one size together on an accelerator."""
    found: dict[int, Tensor] = {}
    for group in _groups(layers):
        widest = max(layers[index][0].shape[1] for index in group)
        # A layer of fewer channels stands there several times: no deviation over channels and no
        # cosine is another one then.
        units = [
            [_repeated(layers[index][place], widest) for index in group]
            for place in range(len(layers[group[0]]))
        ]
        fused = _RULES[rule](units, delta)
        for index, residual in zip(group, _parts(fused.residual, len(group)), strict=True):
            channels = layers[index][0].shape[1]
            found[index] = residual if channels == widest else residual[:, :channels]
        if decided is not None and fused.decision is not None:
            for index, layer in zip(group, _parts(fused.decision(), len(group)), strict=True):
                decided(index, layer)
    return [found[index] for index in range(len(layers))]


def _groups(layers: Sequence[Sequence[Tensor]]) -> list[list[int]]:
    """Which layers are fused in one batch: of one size, channels that divide the most of them."""
    groups: list[list[int]] = []
    for index, layer in enumerate(layers):
        kind = "cpu" if layer[0].device.type == "cpu" else "accelerator"
        for group in groups:
            alike = [layers[other][0] for other in group] + [layer[0]]
            widest = max(other.shape[1] for other in alike)
            if (
                len({(o.shape[0], *o.shape[2:], o.dtype, o.device) for o in alike}) == 1
                and all(widest % other.shape[1] == 0 for other in alike)
                and len(alike) * widest * (layer[0].numel() // layer[0].shape[1])
                <= _GROUP_ELEMENTS[kind]
            ):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _parts(together: Tensor, count: int) -> Sequence[Tensor]:
    return [together] if count == 1 else together.chunk(count)


def _repeated(residual: Tensor, channels: int) -> Tensor:
    times = channels // residual.shape[1]
    return residual if times == 1 else torch.cat([residual] * times, 1)


# --- What the rules compare ---


class _Pixels(NamedTuple):
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


def _compared(units: Units, filtered: Callable[[Tensor], Tensor]) -> _Pixels:
    """The pixels of units, and of their features as `filtered` gives them."""
    if _is_on_cpu(units):
        each = _each(units)
        pixels = _pixels(each, each, filtered, None)
        if _is_ordinary(each, pixels.deviation):
            return pixels
    together = _together(units)
    peak = torch.linalg.vector_norm(
        together, math.inf, 1, keepdim=True, dtype=_wide(together.dtype)
    )
    holes = ~(peak < math.inf)  # NaN is less than nothing
    together.masked_fill_(holes, 0)
    values = _in_range(together, lambda: peak.masked_fill_(holes, 0).amax((2, 3), keepdim=True))
    return _pixels([values], together.chunk(len(units)), filtered, holes)


def _pixels(
    values: Sequence[Tensor],
    units: Sequence[Tensor],
    filtered: Callable[[Tensor], Tensor],
    holes: Tensor | None,
) -> _Pixels:
    """The statistics of `values`, all units in one tensor or each in its own."""
    centred, deviations = zip(*(_centred(part, (1,)) for part in values), strict=True)
    features = [filtered(part) for part in centred]
    lengths = [_norm(part, (1,)) for part in features]
    each = features if len(features) == len(units) else features[0].chunk(len(units))
    products = {
        (i, j): _dot(each[i], each[j]) for i, j in itertools.combinations(range(len(units)), 2)
    }
    return _Pixels(units, _joined(deviations), _joined(lengths), products, holes)


def _compared_channels(
    units: Units,
) -> tuple[Sequence[Tensor] | Tensor, Tensor, Tensor | None]:
    """The units, their deviations [N, B, C, 1, 1], and which entries are finite (None: all)."""
    if _is_on_cpu(units):
        each = _each(units)
        deviation = torch.stack([_deviation(unit, (2, 3)) for unit in each])
        if _is_ordinary(each, deviation.flatten(0, 1)):
            return each, deviation, None
    known, finite = _finite_only(units)
    # The units' deviations are compared with each other, so that one scale serves them all.
    values = _in_range(known, lambda: known.abs().amax((0, 3, 4), keepdim=True))
    count = finite.sum((3, 4), keepdim=True).clamp_min(1)
    mean = values.sum((3, 4), keepdim=True) / count
    filled = torch.where(finite, values, mean)  # what is left out adds no deviation
    return known, _deviation(filled, (3, 4)), finite


def _normalised(maps: Tensor) -> Tensor:
    return maps / maps.sum((-2, -1), keepdim=True).clamp_min(_TINY)


def _centred(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values less their mean over `dims`, and their deviation to a constant factor, in float32.

    Where the values are constant both are exactly zero. On a CPU `values` stay as they are.
    """
    if values.device.type in _RUNNING_MEAN:
        deviation, mean = torch.std_mean(values, dims, correction=0, keepdim=True)
        return values.sub_(mean), deviation
    # A mean of equal numbers can be off by a rounding; the distances to one of them cannot.
    pilot = values
    for dim in dims:
        pilot = pilot.narrow(dim, 0, 1)
    centred = (values - pilot.to(_wide(values.dtype))).float()
    centred.sub_(centred.mean(dims, keepdim=True))
    return centred, _norm(centred, dims)


def _deviation(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    if values.device.type in _RUNNING_MEAN:
        return torch.std(values, dims, correction=0, keepdim=True)
    return _centred(values, dims)[1]


def _norm(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    if values.device.type != "cpu":
        return torch.linalg.vector_norm(values, 2, dims, keepdim=True)
    if dims == (1,):
        return _dot(values, values).sqrt_()
    return values.square().sum(dims, keepdim=True).sqrt_()


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Sum over channels of the products."""
    if one.device.type != "cpu":
        return (one * other).sum(1, keepdim=True)
    # A few channels at a time, so that the products stay in the cache.
    size = max(1, _CACHE_ELEMENTS * one.shape[1] // one.numel())
    parts = zip(one.split(size, 1), other.split(size, 1), strict=True)
    return functools.reduce(operator.iadd, ((a * b).sum(1, keepdim=True) for a, b in parts))


def _blend(units: Sequence[Tensor] | Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Weighted sum over units, accumulated in float32 or wider, in the units' dtype."""
    if isinstance(units, Tensor) and isinstance(weights, Tensor):
        return (units * weights).sum(0).to(units.dtype)
    wide = _wide(units[0].dtype)
    terms = (unit.to(wide) * weight for unit, weight in zip(units, weights, strict=True))
    return functools.reduce(operator.add, terms).to(units[0].dtype)


def _decision(winner: Tensor, averaged: Tensor) -> Tensor:
    return winner.to(torch.int8).masked_fill_(averaged, AVERAGED)


# --- What is not finite, too large or too small ---


def _is_on_cpu(units: Units) -> bool:
    """Whether there is no accelerator to wait for, so that values may be asked for.

    A CPU is asked whether anything is to be left out or scaled, which costs less than to do it.
    """
    return units[0][0].device.type == "cpu"


def _is_ordinary(units: Sequence[Tensor], deviation: Tensor) -> bool:
    """Whether the deviations [N * B, ...] of units on a CPU can be used as they are."""
    totals = deviation.flatten(1).sum(1)
    low, high = _TOTAL_RANGE
    if not bool((totals < high).all()):  # NaN is in no range
        return False
    samples = (sample for unit in units for sample in unit)
    silent = [s for s, total in zip(samples, totals.tolist(), strict=True) if total <= low]
    return all(bool(sample.amax() == sample.amin()) for sample in silent)


def _each(units: Units) -> Sequence[Tensor]:
    """One tensor of each unit, its layers one after the other in the batch."""
    return [_joined(unit) for unit in units]


def _in_range(values: Tensor, peak: Callable[[], Tensor]) -> Tensor:
    """Finite values in float32, of which no square vanishes beside the peak's, nor overflows."""
    if values.dtype is torch.float16:  # none of its numbers' squares does in float32
        return values.float()
    scale = peak().to(_wide(values.dtype))
    return (values / scale.clamp_min(torch.finfo(scale.dtype).tiny)).float()


def _finite_only(units: Units) -> tuple[Tensor, Tensor]:
    """Units [N, B, C, H, W], 0 where not finite; which entries are finite."""
    values = _together(units).unflatten(0, (len(units), -1))
    known = values.nan_to_num(0.0, 0.0, 0.0)
    return known, known == values


def _together(units: Units) -> Tensor:
    """A tensor of its own of all units' layers, one after the other in the batch."""
    return torch.cat([layer for unit in units for layer in unit])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype is torch.float64 else torch.float32


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    try:
        return torch.autocast(device.type, enabled=False)
    except (RuntimeError, AssertionError):  # a device that knows no autocast
        return nullcontext()


def _check_residuals(residuals: Sequence[Tensor], name: str = "residuals") -> None:
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


def _checked_delta(delta: float) -> float:
    if isinstance(delta, bool) or not isinstance(delta, numbers.Real):
        raise TypeError(f"delta is {delta!r}; allowed: a number from 0 to 1")
    if not 0 <= delta <= 1:
        raise ValueError(f"delta is {delta!r}; allowed: 0 to 1")
    return float(delta)

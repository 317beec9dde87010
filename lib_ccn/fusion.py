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
"""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("sum", "mean", "max", "pix", "pix+channel")
AVERAGED = -1  # instead of a winner's number, in a decision

Decided = Callable[[Tensor], None]  # takes a decision

_TINY = torch.finfo(torch.float32).tiny
# Between these, the squares of a sample's deviations neither vanish nor overflow in float32.
_TOTAL_RANGE = (1e-12, 1e18)
# Layers of one shape are fused together up to so many elements, to save an accelerator launches.
_GROUP_ELEMENTS = {"cpu": 0, "accelerator": 1 << 23}


def sum_fusion(residuals: Sequence[Tensor]) -> Tensor:
    """Return the host's own left-to-right sum, in its dtype. Takes and raises as `pix_fusion`."""
    _check_residuals(residuals)
    return functools.reduce(operator.add, residuals)


@torch.no_grad()
def mean_fusion(residuals: Sequence[Tensor]) -> Tensor:
    """Return the average over units, entry by entry. Takes and raises as `pix_fusion`."""
    _check_residuals(residuals)
    fused = _blend(residuals, [1 / len(residuals)] * len(residuals))
    # One cheap reduction tells whether anything is not finite (or could be near the limit).
    if bool(torch.isfinite(fused.sum(dtype=torch.float32))):
        return fused
    values, finite = _finite_only(residuals)
    return _blend(values, _shares(finite, fused.dtype)).to(fused.dtype)


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
    return _fuse_pixels(residuals, delta, smoothed=True, decided=decided)


def max_fusion(
    residuals: Sequence[Tensor], delta: float = 0.7, decided: Decided | None = None
) -> Tensor:
    """Fuse by MaxFusion's output rule (Nair et al., ECCV 2024).

    As `pix_fusion`, with the normalised channel variance in place of the deviation and without
    smoothing. Arguments, result and errors are those of `pix_fusion`.
    """
    return _fuse_pixels(residuals, delta, smoothed=False, decided=decided)


@torch.no_grad()
def channel_fusion(
    residuals: Sequence[Tensor], delta: float = 0.7, decided: Decided | None = None
) -> Tensor:
    """Fuse per channel by spatial deviation (equations 6-8).

    In each channel, the units whose deviation over H, W is at least `delta` times the largest
    (R >= delta) are blended with weights proportional to it; if all are 0, the result is the
    mean. Arguments, result and errors are those of `pix_fusion`; `delta` = 0 blends every unit,
    1 only those that tie.
    """
    _check_residuals(residuals)
    delta = _checked_delta(delta)
    deviation = torch.stack([_norm(_less_mean(unit.flatten(2), 2), 2) for unit in residuals])
    if _in_range(deviation.sum(2)):
        weights = _channel_weights(deviation[..., None, None], delta)
        _tell(decided, deviation.argmax(0), weights[..., 0, 0] > 0)
        return _blend(residuals, weights)
    values, finite = _finite_only(residuals)
    # The units' deviations are compared with each other, so that one scale serves them all.
    scaled = values / _power_of_two(values, (0, 2, 3, 4))
    mean = scaled.sum((3, 4), keepdim=True) / finite.sum((3, 4), keepdim=True).clamp_min(1)
    known = torch.where(finite, scaled, mean).flatten(3)
    deviation = torch.stack([_norm(_less_mean(unit, 2), 2) for unit in known])
    # A unit that is left out ranks below every deviation, 0 included.
    ranked = deviation[..., None, None].masked_fill(~finite, -1.0)
    weights = _channel_weights(ranked, delta)
    # Here an entry may be without some units; the channel's winner is told, not the entry's.
    _tell(decided, deviation.argmax(0), (weights > 0).any(-1).any(-1))
    return _blend(values, weights).to(residuals[0].dtype)


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
    if mode == "mean":
        return _fuse_layers(layers, lambda layer, decided: mean_fusion(layer), None)
    rule = functools.partial(max_fusion if mode == "max" else pix_fusion, delta=delta)
    if mode != "pix+channel":
        return _fuse_layers(layers, rule, decided)
    last = len(layers) - 1
    tell = None if decided is None else functools.partial(decided, last)
    return [*_fuse_layers(layers[:-1], rule, decided), channel_fusion(layers[-1], delta, tell)]


@torch.no_grad()
def smoothed_deviation(residual: Tensor) -> Tensor:
    """Return G * normalised sigma [B, H, W], float32: where this unit has something to say.

    `residual` is [B, C, H, W]; sigma is the deviation over channels, divided by its sum over
    the map (equations 1-2); a unit without deviation gives zeros.
    """
    _check_residuals([residual, residual], "residual")
    return smooth(_normalised(_centred([residual])[1]))[0]


@torch.no_grad()
def smooth(map: Tensor) -> Tensor:
    """Convolve each plane of [..., H, W] with G = [[1,2,1],[2,4,2],[1,2,1]] / 16, zero padded.

    Computed and returned in float32.
    """
    planes = map.float()
    planes = planes if map.ndim == 4 else planes.reshape(1, -1, *map.shape[-2:])
    single = planes.shape[1] == 1
    if single:  # alone it would go to cuDNN, which may round to TF32; depthwise does not
        planes = planes.expand(-1, 2, -1, -1)
    channels = planes.shape[1]
    kernel = _gaussian(map.device).expand(channels, 1, 3, 3)
    with _without_autocast(map.device):
        smoothed = F.conv2d(planes.contiguous(), kernel, padding=1, groups=channels)
    return (smoothed[:, :1] if single else smoothed).reshape(map.shape)


@functools.lru_cache(maxsize=8)
def _gaussian(device: torch.device) -> Tensor:
    """G on the device; kept, because a copy from the host would wait for an accelerator."""
    rows = [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    return torch.tensor(rows, dtype=torch.float32, device=device) / 16


@torch.no_grad()
def _fuse_pixels(
    residuals: Sequence[Tensor], delta: float, smoothed: bool, decided: Decided | None
) -> Tensor:
    _check_residuals(residuals)
    delta = _checked_delta(delta)
    dtype, count = residuals[0].dtype, len(residuals)
    centred, norms, finite = _centred(residuals)
    score = smooth(_normalised(norms)) if smoothed else _normalised(_normalised(norms).square())
    if smoothed:
        centred = [smooth(unit) for unit in centred]
    lengths = [_norm(unit, 1) for unit in centred]
    needed = delta if delta < 1 else 2.0  # no cosine exceeds 1, whatever its rounding

    def agree(i: int, j: int) -> Tensor:
        # cosine > delta, without a division: a zero norm compares 0 > 0.
        return (centred[i] * centred[j]).sum(1) > lengths[i] * lengths[j] * needed

    if count == 2 and finite is None:
        # No `lerp` with weights 0, 0.5 and 1: on some devices its ends are no copies.
        first, second = residuals
        second_wins, both = score[1] > score[0], agree(0, 1)
        if decided is not None:
            decided(second_wins.to(torch.int8).masked_fill_(both, AVERAGED))
        stronger = torch.where(second_wins[:, None], second, first)
        return torch.where(both[:, None], torch.lerp(first, second, 0.5), stronger)

    winner = (score if finite is None else score.masked_fill(~finite, -1.0)).argmax(0)
    chosen = torch.stack([winner == i for i in range(count)])
    for i in range(count):
        for j in range(i + 1, count):
            both = agree(i, j)
            chosen[i] |= both & (winner == j)
            chosen[j] |= both & (winner == i)
    if finite is not None:
        chosen &= finite
    _tell(decided, winner, chosen)
    if finite is None:
        return _blend(residuals, _shares(chosen, dtype)[:, :, None])
    values = _finite_only(residuals)[0]
    return _blend(values, _shares(chosen, dtype)[:, :, None]).to(dtype)


def _tell(decided: Decided | None, winner: Tensor, chosen: Tensor) -> None:
    """Tell a decision, if anybody asks: the winner's place; which units have a share [N, ...]."""
    if decided is not None:
        decided(winner.to(torch.int8).masked_fill_(chosen.sum(0) > 1, AVERAGED))


def _fuse_layers(
    layers: Sequence[Sequence[Tensor]],
    rule: Callable[..., Tensor],
    decided: Callable[[int, Tensor], None] | None,
) -> list[Tensor]:
    """Apply the rule to each layer's units, layers of one shape together where that is quicker."""
    groups: dict[object, list[int]] = {}
    for index, (first, *_) in enumerate(layers):
        kind = "cpu" if first.device.type == "cpu" else "accelerator"
        room = max(1, _GROUP_ELEMENTS[kind] // first.numel())
        alike = sum(other[0].shape == first.shape for other in layers[:index])
        groups.setdefault((first.shape, first.dtype, alike // room), []).append(index)
    fused: dict[int, Tensor] = {}
    for group in groups.values():
        together = layers[group[0]]
        if len(group) > 1:  # a rule is per sample, so that layers can stand in one batch
            units = zip(*(layers[index] for index in group), strict=True)
            together = [torch.cat(unit) for unit in units]
        tell = None if decided is None else functools.partial(_tell_each, decided, group)
        result = rule(together, decided=tell)
        fused.update(zip(group, result.chunk(len(group)), strict=True))
    return [fused[index] for index in range(len(layers))]


def _tell_each(decided: Callable[[int, Tensor], None], group: list[int], together: Tensor) -> None:
    """Tell the decisions of layers that stand in one batch."""
    for index, decision in zip(group, together.chunk(len(group)), strict=True):
        decided(index, decision)


def _centred(residuals: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Channel-centred units and their norms [N, B, H, W], float32; finite pixels or None for all.

    The norm is sqrt(C) sigma; normalisation drops the factor. Units that hold something not
    finite, or too large or small to square, are brought into range first, by a power of two.
    """
    centred = [_less_mean(unit, 1) for unit in residuals]
    norms = torch.stack([_norm(unit, 1) for unit in centred])
    if _in_range(norms.sum((-2, -1))):
        return centred, norms, None
    values, entries = _finite_only(residuals)
    finite = entries.all(2)
    values = values.masked_fill(~finite[:, :, None], 0)
    centred = [_less_mean(unit, 1) for unit in values / _power_of_two(values, (2, 3, 4))]
    return centred, torch.stack([_norm(unit, 1) for unit in centred]), finite


def _less_mean(values: Tensor, dim: int) -> Tensor:
    """`values` less their mean over `dim`, in float32; exact zeros where they are constant."""
    # A mean of equal numbers can be off by a rounding; the distances to one of them cannot.
    pilot = values.narrow(dim, 0, 1).to(_wide(values.dtype))
    shifted = (values - pilot).float()
    return shifted.sub_(shifted.mean(dim, keepdim=True))


def _norm(values: Tensor, dim: int) -> Tensor:
    if values.device.type == "cpu":  # six times quicker there; elsewhere one launch is better
        return (values * values).sum(dim).sqrt_()
    return torch.linalg.vector_norm(values, dim=dim)


def _normalised(maps: Tensor) -> Tensor:
    return maps / maps.sum((-2, -1), keepdim=True).clamp_min(_TINY)


def _in_range(totals: Tensor) -> bool:
    low, high = _TOTAL_RANGE
    return bool(((totals > low) & (totals < high)).all())  # NaN is in no range


def _power_of_two(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A power of two near the largest magnitude over `dims`; 1 where all is zero."""
    peak = values.abs().amax(dims, keepdim=True)
    return torch.where(peak > 0, peak.log2().floor().exp2(), 1.0)


def _channel_weights(deviation: Tensor, delta: float) -> Tensor:
    """Weights over units [N, ...] from deviations; -1 stands for a unit that is left out."""
    weights = deviation.clamp_min(0) * (deviation >= deviation.amax(0) * delta)
    total = weights.sum(0)
    mean = _shares(deviation >= 0, deviation.dtype)
    return torch.where(total > 0, weights / total.clamp_min(_TINY), mean)


def _shares(members: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal weights over the member units of [N, ...]; zeros where there is none."""
    return members.to(_wide(dtype)) / members.sum(0).clamp_min(1)


def _blend(residuals: Sequence[Tensor] | Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Weighted sum over units, accumulated in float32 or wider, in the residuals' dtype."""
    wide = _wide(residuals[0].dtype)
    terms = (unit.to(wide) * weight for unit, weight in zip(residuals, weights, strict=True))
    return functools.reduce(operator.add, terms).to(residuals[0].dtype)


def _finite_only(residuals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Units [N, B, C, H, W] in float32 or wider, 0 where not finite; which entries are finite."""
    values = torch.stack(tuple(residuals)).to(_wide(residuals[0].dtype))
    finite = torch.isfinite(values)
    return values.masked_fill(~finite, 0), finite


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


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

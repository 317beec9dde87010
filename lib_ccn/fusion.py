"""Fusion of ControlNet residuals: which unit's residual wins where.

The rules are in `rules.py`, with what they have in common; here is what others call, and how
layers are fused together. Pure functions of tensors: no host, no state, no gradient. Any floating
dtype, strides and device go in; the result has the input's dtype and device.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import devices
from .residuals import (
    check_residuals,
    checked_delta,
    compared,
    normalised,
    smooth,
    wide,
)
from .rules import AVERAGED, RULES, Front, Rule, front_over_back

MODES = ("sum", "mean", "max", "pix", "pix+channel", "layers")
OUTSIDE = ("sum", "pix+channel")  # of "layers", where nobody has a place

Decided = Callable[[Tensor], None]  # takes a decision


def sum_fusion(residuals: Sequence[Tensor]) -> Tensor:
    """Return the host's own left-to-right sum, in its dtype. Takes and raises as `pix_fusion`."""
    check_residuals(residuals)
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


def layers_fusion(
    residuals: Sequence[Tensor],
    front: Front,
    delta: float = 0.7,
    decided: Decided | None = None,
) -> Tensor:
    """Compose the units as a painter does, front over back.

    Not the paper's: its rule asks which signal is stronger, this one whose place it is. With
    M_j the place of unit j and g the gain inside it,

        f = sum_i (1 + (g - 1) M_i) f_i * prod over j in front of i of (1 - c_ij M_j)

    where c_ij is 1 where the cosine of equation 4 between units i and j is at most `delta`, and 0
    where it is above: nobody is silenced where there is no conflict, nor by a unit that is zero or
    not finite there. Where there is no place the result is the host's own sum, bit for bit.

    Args:
        residuals: as `pix_fusion` takes them.
        front: who is in front of whom, and where.
        delta: agreement needed for being heard behind another, 0..1. At 1 nobody is.
        decided: takes the decision: a unit's place in `residuals` where it silences another, and
            `AVERAGED` where all are added.

    Returns and raises as `pix_fusion`; ValueError too where `front` has other units.
    """
    check_residuals(residuals)
    rule = _with_front(front, len(residuals))
    tell = None if decided is None else (lambda _, decision: decided(decision))
    return _fuse(rule, [residuals], checked_delta(delta), tell)[0]


class _Taken(NamedTuple):
    """How much of each pixel is in nobody's place; where all is, and none: [B or 1, 1, H, W]."""

    left: Tensor
    nowhere: Tensor
    everywhere: Tensor

    @classmethod
    def of(cls, front: Front, size: torch.Size, like: Tensor) -> _Taken:
        """At a size [H, W], for residuals of this one's dtype and device."""
        masks = front.masks((size[0], size[1]), like.device)
        left = 1 - masks.to(wide(like.dtype)).sum(0)
        return cls(left, left >= 1, left <= 0)


@torch.no_grad()
def _over(taken: _Taken, composed: Tensor, rest: Tensor, added: Tensor) -> Tensor:
    """Layers where there are places, and `rest` where there are none."""
    mixed = (composed + taken.left * (rest - added)).to(rest.dtype)
    finite = mixed.abs() < math.inf  # the sum spreads what is not
    mixed = torch.where(taken.everywhere, composed, mixed)
    return torch.where(taken.nowhere | ~(finite | taken.everywhere), rest, mixed)


def _chosen(taken: _Taken, inside: Tensor, others: Tensor) -> Tensor:
    """Who won, inside the places or outside; where channels decide there, inside alone."""
    if others.ndim != inside.ndim:
        return inside
    return torch.where((inside == AVERAGED) & (taken.left[:, 0] >= 0.5), others, inside)


def _with_front(front: Front | None, units: int) -> Rule:
    if front is None or len(front.ranks) != units:
        ranks = None if front is None else list(front.ranks)
        raise ValueError(f"front has the ranks {ranks}; allowed: one for each of {units} units")
    return functools.partial(front_over_back, front=front)


def _layers_over(
    residuals_by_unit: Sequence[Sequence[Tensor]],
    front: Front,
    delta: float,
    decided: Callable[[int, Tensor], None] | None,
    outside: str,
) -> list[Tensor]:
    """Layers where there are places, and the fusion `outside` where there are none."""
    layers = list(zip(*residuals_by_unit, strict=True))
    rule = _with_front(front, len(residuals_by_unit))
    inside: dict[int, Tensor] = {}
    others: dict[int, Tensor] = {}
    composed = _fuse(rule, layers, delta, decided and inside.__setitem__)
    rest = fuse_residuals(residuals_by_unit, outside, delta, decided and others.__setitem__)
    sizes = dict.fromkeys(layer[0].shape[-2:] for layer in layers)
    shares = {size: _Taken.of(front, size, layers[0][0]) for size in sizes}
    taken = [shares[layer[0].shape[-2:]] for layer in layers]
    if decided is not None:
        for index, share in enumerate(taken):
            decided(index, _chosen(share, inside[index], others[index]))
    added = map(sum_fusion, layers)
    return [_over(*one) for one in zip(taken, composed, rest, added, strict=True)]


def fuse_residuals(
    residuals_by_unit: Sequence[Sequence[Tensor]],
    mode: str,
    delta: float = 0.7,
    decided: Callable[[int, Tensor], None] | None = None,
    front: Front | None = None,
    outside: str = "sum",
) -> list[Tensor]:
    """Fuse the whole output of N >= 2 ControlNets into one tensor per residual.

    Args:
        residuals_by_unit: for each unit its residuals in execution order, the middle one last.
        mode: one of `MODES`. "pix+channel" is the paper's: ChannelFusion on the last residual,
            PixFusion on the others. The other modes use one rule throughout.
        delta: see `pix_fusion`; unused by "sum" and "mean".
        decided: takes each residual's place and who won there; not asked by "sum" and "mean",
            in which nobody wins.
        front: for "layers", see `layers_fusion`; unused by the others.
        outside: for "layers" what is done where nobody has a place, one of `OUTSIDE`: the sum, or
            another mode, of whose result P and the sum S this is made with T, the places' sum:
            f + (1 - T) (P - S), which is P where T is 0 and f of `layers_fusion` where it is 1.

    Raises as `pix_fusion`, and ValueError for an unknown mode or units of unequal length.
    """
    delta = checked_delta(delta)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")
    lengths = [len(unit) for unit in residuals_by_unit]
    if len(lengths) < 2:
        raise ValueError(f"residuals_by_unit has {len(lengths)} units; allowed: 2 or more")
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"residuals_by_unit has {lengths} residuals; allowed: equal, 1 or more")
    layers = list(zip(*residuals_by_unit, strict=True))
    for index, layer in enumerate(layers):
        check_residuals(layer, f"residual {index} by unit")
    if mode == "sum":
        return [sum_fusion(layer) for layer in layers]
    if mode == "layers":
        if outside not in OUTSIDE:
            raise ValueError(f"outside is {outside!r}; allowed: {', '.join(OUTSIDE)}")
        rule = _with_front(front, len(lengths))
        if outside == "sum" or front is None:
            return _fuse(rule, layers, delta, decided)
        return _layers_over(residuals_by_unit, front, delta, decided, outside)
    down, middle = (layers[:-1], layers[-1:]) if mode == "pix+channel" else (layers, [])
    fused = _fuse(RULES["pix" if middle else mode], down, delta, decided)
    if middle:
        tell = decided and (lambda _, decision: decided(len(down), decision))
        fused += _fuse(RULES["channel"], middle, delta, tell)
    return fused


@torch.no_grad()
def smoothed_deviation(residual: Tensor) -> Tensor:
    """Return G * normalised sigma [B, H, W], float32: where this unit has something to say.

    `residual` is [B, C, H, W]; sigma is the deviation over channels, divided by its sum over
    the map (equations 1-2); a unit without deviation gives zeros.
    """
    check_residuals([residual, residual], "residual")
    return smooth(normalised(compared([[residual]], lambda features: features).deviation))[:, 0]


# --- Around the rules: layers together ---


def _fuse_one(
    rule: str, residuals: Sequence[Tensor], delta: float, decided: Decided | None
) -> Tensor:
    check_residuals(residuals)
    delta = checked_delta(delta)
    tell = None if decided is None else (lambda _, decision: decided(decision))
    return _fuse(RULES[rule], [residuals], delta, tell)[0]


@torch.no_grad()
def _fuse(
    rule: Rule,
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
        fused = rule(units, delta)
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
        room = elements_together(layer[0].device)
        for group in groups:
            alike = [layers[other][0] for other in group] + [layer[0]]
            widest = max(other.shape[1] for other in alike)
            if (
                len({(o.shape[0], *o.shape[2:], o.dtype, o.device) for o in alike}) == 1
                and all(widest % other.shape[1] == 0 for other in alike)
                and len(alike) * widest * (layer[0].numel() // layer[0].shape[1]) <= room
            ):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def elements_together(device: torch.device) -> int:
    """Up to how many elements layers of one size are fused together, to save launches."""
    return 0 if devices.is_cpu(device) else 1 << 24


def _parts(together: Tensor, count: int) -> Sequence[Tensor]:
    return [together] if count == 1 else together.chunk(count)


def _repeated(residual: Tensor, channels: int) -> Tensor:
    times = channels // residual.shape[1]
    return residual if times == 1 else torch.cat([residual] * times, 1)

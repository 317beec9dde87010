"""The rules of fusion, one function each, as they stand in the paper.

Cross-ControlNet (ICLR 2026), equations 1-4 (PixFusion) and 6-8 (ChannelFusion), and the rules
they are compared with; `fusion.py` has what others call. A rule takes units (each the layers that
are fused together, residuals [B, C, H, W] of one shape) and delta.

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
  to finish first what it has still to do. Only a CPU is (`is_on_cpu`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .residuals import (
    TINY,
    Pixels,
    Units,
    blend,
    compared,
    compared_channels,
    each_unit,
    finite_only,
    is_on_cpu,
    normalised,
    smooth,
    wide,
)

AVERAGED = -1  # instead of a winner's number, in a decision

_NEGLIGIBLE = 1e-12  # a weight beside a larger one, in float32


class Front(NamedTuple):
    """Which units are in front of which, and where: what `layers_fusion` composes by.

    Attributes:
        ranks: for each unit the place it has, 0 for the one in front; None behind all places.
            Units of one rank share their place.
        masks: the places at a size (H, W) on a device, [P, B or 1, 1, H, W] in 0..1, disjoint:
            their sum is at most 1.
        gain: what a unit is multiplied by inside its own place.
    """

    ranks: Sequence[int | None]
    masks: Callable[[tuple[int, int], torch.device], Tensor]
    gain: float = 1.0


class Fused(NamedTuple):
    """A residual [B, C, H, W], and who won in it: worked out when asked; None if nobody does."""

    residual: Tensor
    decision: Callable[[], Tensor] | None = None


def pix(units: Units, delta: float) -> Fused:
    """PixFusion, equations 1 to 4."""
    pixels = compared(units, smooth)
    score = smooth(normalised(pixels.deviation))
    return _strongest(pixels, score, delta)


def maximum(units: Units, delta: float) -> Fused:
    """MaxFusion's output rule: the variance for the deviation, and nothing is smoothed."""
    pixels = compared(units, lambda features: features)
    score = normalised(normalised(pixels.deviation).square())
    return _strongest(pixels, score, delta)


def _strongest(pixels: Pixels, score: Tensor, delta: float) -> Fused:
    """Equation 4: the winner, or its mean with every unit whose cosine with it exceeds delta."""
    count = len(pixels.units)
    if pixels.holes is not None:
        score.masked_fill_(pixels.holes, -1.0)
        pixels.lengths.masked_fill_(pixels.holes, math.inf)
    agree = _agreement(pixels, delta)
    if count == 2:
        scores = score.chunk(2)
        (first, second), wins, both = pixels.units, scores[1] > scores[0], agree[0, 1]
        # No `lerp` with weights 0, 0.5 and 1: on some devices its ends are no copies.
        stronger = torch.where(wins, second, first)
        fused = torch.where(both, torch.lerp(first, second, 0.5), stronger)
        return Fused(fused, lambda: _decision(wins, both)[:, 0])
    winner = score.unflatten(0, (count, -1)).argmax(0)
    # Who agrees with whom, for each who may have won; with itself everybody does.
    pairs = [
        agree.get((min(i, j), max(i, j)), agree[0, 1]) for i in range(count) for j in range(count)
    ]
    with_each = torch.stack(pairs).unflatten(0, (count, count))
    chosen = with_each.gather(0, winner.expand(1, count, *winner.shape))[0]
    chosen.scatter_(0, winner[None], True)
    shared = chosen.sum(0)
    fused = blend(pixels.units, chosen.to(wide(pixels.units[0].dtype)) / shared)
    return Fused(fused, lambda: _decision(winner, shared > 1)[:, 0])


def _agreement(pixels: Pixels, delta: float) -> dict[tuple[int, int], Tensor]:
    """Where the cosine of each pair of units exceeds delta: bool [B, 1, H, W]."""
    needed = delta if delta < 1 else 2.0  # no cosine exceeds 1, whatever its rounding
    lengths = pixels.lengths.chunk(len(pixels.units))
    # No division: a zero length compares 0 > 0, and beside an infinite one nothing is greater.
    return {
        (i, j): torch.addcmul(product, lengths[i], lengths[j], value=-needed) > 0
        for (i, j), product in pixels.products.items()
    }


def front_over_back(units: Units, delta: float, front: Front) -> Fused:
    """Layers: a rule of this project's own, see `fusion.layers_fusion`."""
    pixels = compared(units, smooth)
    if pixels.holes is not None:
        pixels.lengths.masked_fill_(pixels.holes, 0)
    agree = _agreement(pixels, delta)
    speaks = (pixels.lengths > 0).chunk(len(pixels.units))
    like = pixels.units[0]
    places = front.masks((like.shape[-2], like.shape[-1]), like.device)
    if len(units[0]) > 1 and places.shape[1] > 1:  # the batch holds several layers
        places = places.repeat(1, len(units[0]), 1, 1, 1)
    places = places.to(wide(like.dtype))
    total: Tensor | None = None
    silencing: dict[int, list[Tensor]] = {}
    for i, unit in enumerate(pixels.units):
        weight: Tensor | None = None
        for j in range(len(pixels.units)):
            place = _in_front(front.ranks, j, i)
            if place is None:
                continue
            conflict = speaks[j] > agree[min(i, j), max(i, j)]  # the one and not the other
            silenced = places[place] * conflict
            silencing.setdefault(place, []).append(silenced)
            weight = 1 - silenced if weight is None else weight * (1 - silenced)
        own = front.ranks[i]
        if own is not None and front.gain != 1:
            gain = 1 + (front.gain - 1) * places[own]
            weight = gain if weight is None else weight * gain
        # In the host's dtype and order, so that with no place it is the host's sum exactly.
        term = unit if weight is None else (unit * weight).to(unit.dtype)
        total = term if total is None else total + term
    assert total is not None

    def decision() -> Tensor:
        won = torch.full_like(agree[0, 1], AVERAGED, dtype=torch.int8)
        for place, where in silencing.items():
            first = list(front.ranks).index(place)
            won.masked_fill_(torch.stack(where).amax(0) > 0.5, first)
        return won[:, 0]

    return Fused(total, decision)


def _in_front(ranks: Sequence[int | None], one: int, other: int) -> int | None:
    """The place of one unit, if it is in front of the other; else None."""
    mine, theirs = ranks[one], ranks[other]
    return mine if mine is not None and (theirs is None or mine < theirs) else None


def channel(units: Units, delta: float) -> Fused:
    """ChannelFusion, equations 6 to 8."""
    entries, deviation, finite = compared_channels(units)
    # Weights are the deviations; where there is none at all they are equal. A unit that is left
    # out has no weight, and those that are there are compared with each other.
    weights = deviation.clamp_min(TINY)
    if finite is not None:
        weights = weights * finite
    weights = weights * (weights >= weights.amax(0) * max(delta, _NEGLIGIBLE))
    weights = weights / weights.sum(0).clamp_min(TINY)

    def decision() -> Tensor:
        several = (weights > 0).flatten(3).any(3).sum(0) > 1
        return _decision(deviation[..., 0, 0].argmax(0), several)

    return Fused(blend(entries, weights), decision)


def mean(units: Units, delta: float) -> Fused:
    """The average over the units that are finite."""
    if is_on_cpu(units):
        fused = blend(each_unit(units), [1 / len(units)] * len(units))
        # A sum that is not finite tells of an entry, or of numbers near the limit.
        if bool(torch.isfinite(fused.sum(dtype=torch.float32))):
            return Fused(fused)
    known, finite = finite_only(units)
    shares = finite.to(wide(known.dtype)) / finite.sum(0).clamp_min(1)
    return Fused(blend(known, shares))


Rule = Callable[[Units, float], Fused]
RULES: dict[str, Rule] = {
    "mean": mean,
    "max": maximum,
    "pix": pix,
    "channel": channel,
}


def _decision(winner: Tensor, averaged: Tensor) -> Tensor:
    return winner.to(torch.int8).masked_fill_(averaged, AVERAGED)

"""Means with 95 % bootstrap intervals, over pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
FEW = 10  # with fewer pairs an interval says nothing


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` pairs, and its interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def apart_from_zero(self) -> bool:
        """Whether the interval leaves 0 out, over enough pairs to tell."""
        return self.count >= FEW and (self.low > 0 or self.high < 0)


def estimate(values: Mapping[str, float]) -> Estimate | None:
    """The mean of the values by pair and its percentile interval; None without any.

    The resamples are the same in every call with as many pairs.
    """
    numbers = np.array([values[pair] for pair in sorted(values)])
    if not len(numbers):
        return None
    drawn = np.random.default_rng(0).integers(len(numbers), size=(RESAMPLES, len(numbers)))
    low, high = np.percentile(numbers[drawn].mean(1), (2.5, 97.5))
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def difference(values: Mapping[str, float], base: Mapping[str, float]) -> Estimate | None:
    """The mean of `values` less `base` over the pairs that both have."""
    return estimate({pair: values[pair] - base[pair] for pair in values if pair in base})

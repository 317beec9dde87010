"""The foreground mask (Cross-ControlNet, ICLR 2026, section 3.3): from a word's map to a mask.

The backbone's cross-attention says where a word of the prompt is being drawn; a threshold on that
map is the mask of the next step. A painted image or the condition's own silhouette can stand in
(`silhouette.py`). Pure functions of tensors.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .residuals import smooth

# A map whose range is below this part of its largest value says nothing about place.
_FLAT = 1e-5


class Word(Protocol):
    """A word of the prompt."""

    @property
    def positions(self) -> Sequence[int]:
        """Where its tokens stand in the text context."""


WordT = TypeVar("WordT", bound=Word)


def word_map(maps: Tensor, positions: Sequence[int]) -> Tensor:
    """Average `maps` [rows, T, H, W] over a word's token `positions`: [rows, H, W].

    Raises ValueError without positions or with one outside 0..T-1.
    """
    tokens = maps.shape[1]
    if not positions or not all(0 <= p < tokens for p in positions):
        raise ValueError(f"positions must lie in 0..{tokens - 1}, got {list(positions)}")
    return maps[:, list(positions)].mean(1)


def scaled_map(word_map: Tensor) -> tuple[Tensor, Tensor]:
    """A word's map [rows, H, W] smoothed with G, zero padded, and scaled to [0, 1] by its extremes.

    The second result, `usable` [rows], is False where the map is constant or not finite: there
    the first is all zeros.
    """
    maps = word_map.float()
    usable = _informative(maps)
    maps = smooth(maps)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(usable[:, None, None], (maps - low) / (high - low), 0.0), usable


def foreground_mask(word_map: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Threshold a word's map [rows, H, W]: a boolean mask [rows, H, W] and `usable` [rows].

    Foreground is at or above the threshold in `scaled_map`, so 0 takes all and 1 the maximum
    alone. A row that is not usable has a mask that is all False.
    """
    scaled, usable = scaled_map(word_map)
    return cut_map(scaled, usable, threshold), usable


def cut_map(scaled: Tensor, usable: Tensor, threshold: float) -> Tensor:
    """The mask [rows, H, W] of what `scaled_map` returned; see `foreground_mask`."""
    return (scaled >= threshold) & usable[:, None, None]


def resize_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A mask [rows, H, W] on a layer's tokens: boolean [rows, h * w], row-major.

    A token is foreground when at least half of its area is; a larger grid repeats the pixels.
    """
    area = F.adaptive_avg_pool2d(mask[:, None].float(), grid)
    return (area >= 0.5).flatten(1)


def reduced_grid(size: tuple[int, int], reduction: int) -> tuple[int, int]:
    """The grid (h, w) of a `size` divided by `reduction`, rounded up."""
    return -(-size[0] // reduction), -(-size[1] // reduction)


def token_grid(latent_size: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """The grid (h, w) with that many `tokens` after some halvings of the latent, each rounded up.

    None when no number of halvings gives it.
    """
    h, w = latent_size
    while h * w > tokens and h * w > 1:
        h, w = -(-h // 2), -(-w // 2)
    return (h, w) if h * w == tokens else None


def word_scores(
    maps: Tensor, words: Sequence[WordT], deviation: Tensor
) -> list[tuple[WordT, float]]:
    """How well each word's smoothed map agrees with a unit's deviation, the best first.

    `maps` [rows, T, H, W]; `deviation` [rows, h, w] is the unit's smoothed deviation map, brought
    to the maps' size. The score is Pearson's correlation, averaged over rows where both vary; of
    equal ones the earlier word comes first. Words without a positive score are left out: they mark
    another place.
    """
    height, width = maps.shape[-2:]
    target = F.adaptive_avg_pool2d(deviation.float()[:, None], (height, width))[:, 0]
    found = []
    for word in words:
        if not word.positions:
            continue
        candidate = word_map(maps.float(), word.positions)
        usable = _informative(candidate) & _informative(target)
        score = _correlation(smooth(candidate), target)[usable].mean().item()
        if score > 0:
            found.append((word, score))
    return sorted(found, key=lambda one: -one[1])


def assigned_words(
    scores: Sequence[Sequence[tuple[WordT, float]]],
) -> list[WordT | None]:
    """A word for each of several units, none twice, with the greatest sum of scores.

    `scores` are each unit's from `word_scores`. A unit for which no word is left has None.
    """
    # With as many words as there are units, one is left for everybody.
    choices = [list(own[: len(scores)]) for own in scores]

    def best(unit: int, taken: frozenset[WordT]) -> tuple[float, list[WordT | None]]:
        if unit == len(choices):
            return 0.0, []
        total, rest = best(unit + 1, taken)
        found: tuple[float, list[WordT | None]] = (total, [None, *rest])
        for word, score in reversed(choices[unit]):
            if word not in taken:
                total, rest = best(unit + 1, taken | {word})
                if total + score >= found[0]:
                    found = total + score, [word, *rest]
        return found

    return best(0, frozenset())[1]


def _informative(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    return torch.isfinite(high - low) & (high - low > _FLAT * torch.maximum(high.abs(), low.abs()))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (t.flatten(1) - t.flatten(1).mean(1, keepdim=True) for t in (a, b))
    return F.cosine_similarity(a, b, dim=1, eps=1e-30)

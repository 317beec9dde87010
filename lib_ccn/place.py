"""The place of one unit in front, or of several that share a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .foreground_word import ForegroundWord
from .layers import Layer
from .outcome import ToldPlace
from .units import Unit

# How far below the threshold a place ends, in a word's map that is scaled to [0, 1].
_FADE = 0.5


@dataclass(eq=False)
class Place:
    """The place of one unit in front, or of several that share a word.

    Attributes:
        layer: where its mask comes from.
        units: whose it is; none where nobody is in front.
        word: which word its mask is from, if from one.
        image: bool [1 or pictures, H, W] for the mask source "image".
        rivals: units of all places that this word is told apart for, each by its own deviation;
            empty where the word is this place's alone.
        mask: bool [pictures, H, W], None until there is one.
        usable: bool [pictures], of which pictures it counts.
        heat: the word's map behind the mask, [pictures, H, W] in [0, 1]; else None.
    """

    layer: Layer
    units: list[Unit]
    word: ForegroundWord | None = None
    image: Tensor | None = None
    rivals: list[Unit] = field(default_factory=list)
    mask: Tensor | None = None
    usable: Tensor | None = None
    heat: Tensor | None = None

    @property
    def is_known(self) -> bool:
        """Whether any picture has a mask of use."""
        return self.usable is not None and bool(self.usable.any())

    def put(self, mask: Tensor, usable: Tensor, heat: Tensor | None = None) -> bool:
        """Have this mask from now on; whether it is another one than before."""
        before, now = (self.mask, self.usable, self.heat), (mask, usable, heat)
        self.mask, self.usable, self.heat = now
        return not all(
            old is new or (old is not None and new is not None and torch.equal(old, new))
            for old, new in zip(before, now, strict=True)
        )

    def softly(self, size: tuple[int, int]) -> Tensor:
        """How much of each pixel is in the place, [pictures, h, w] in [0, 1]; 0 if not usable.

        All of the mask of a word is, and around it less and less, so that no rim appears and no
        part of the object is left to who is behind **[choice]**; what is drawn counts by its area.
        """
        assert self.mask is not None
        assert self.usable is not None
        usable = self.usable[:, None, None]
        if self.heat is None:
            return F.adaptive_avg_pool2d(self.mask[:, None].float(), size)[:, 0] * usable
        heat = F.interpolate(self.heat[:, None], size=size, mode="bilinear")[:, 0]
        threshold = self.layer.mask_threshold or 0.0
        rise = ((heat - threshold) / _FADE + 1).clamp(0, 1)
        return rise.square() * (3 - 2 * rise) * usable

    def of_picture(self, picture: int) -> Tensor | None:
        """The mask bool [H, W] of one picture; None where it has none of use."""
        if self.mask is None or self.usable is None:
            return None
        row = picture if len(self.mask) > 1 else 0
        return self.mask[row] if bool(self.usable[row if len(self.usable) > 1 else 0]) else None

    def told(self, fronts: Sequence[float]) -> ToldPlace:
        """What is told of it; `fronts` are the shares of the pictures that it has in the end."""
        words: list[str] = []
        if self.word is not None:
            how = "given" if self.word.given else "automatic"
            chosen = (self.word.chosen[prompt] for prompt in sorted(self.word.chosen))
            words = [f"{word} ({how})" for word in dict.fromkeys(filter(None, chosen))]
        names = [unit.name or f"unit {unit.number}" for unit in self.units]
        return ToldPlace(names, self.layer.mask_source or "", words, fronts)

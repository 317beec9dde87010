"""Where a foreground unit has its place: a mask for each step, and what attention needs of it.

A mask comes from a word of the prompt, anew in each step, or once from an image or from what the
unit's condition shows; or it is all ones. Masks stay on the CPU: only there can they be looked at
without waiting for an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .attention import Regions
from .foreground import resize_mask, silhouette, token_grid
from .masking import WordMask
from .settings import Settings
from .units import Call, Unit


class Place:
    """The place of one foreground unit.

    Args:
        settings: with a start step that is a number.
        maps: say where the foreground word is.
        unit: whose place it is; None where no unit is in front.
        image: bool [1 or pictures, H, W] for the mask source "image".
        note: takes a sentence for the user.

    Attributes:
        mask: bool [pictures, H, W], None until there is one.
        usable: bool [pictures], of which pictures it counts.
    """

    def __init__(
        self,
        settings: Settings,
        maps: WordMask,
        unit: Unit | None,
        image: Tensor | None,
        note: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.maps = maps
        self.unit = unit
        self.mask: Tensor | None = None
        self.usable: Tensor | None = None
        self._image = image
        self._note = note
        self._regions: dict[tuple[object, ...], Regions | None] = {}
        if settings.reads_word:
            maps.attach()

    @property
    def is_known(self) -> bool:
        """Whether any picture has a mask of use."""
        return self.usable is not None and bool(self.usable.any())

    @property
    def heat(self) -> Tensor | None:
        """The foreground word's map behind `mask`, float [pictures, H, W] in [0, 1], or None."""
        return self.maps.heat

    @property
    def seconds(self) -> float:
        """That reading the word's maps took so far."""
        return self.maps.recorder.seconds

    def begin_step(self, call: Call) -> None:
        """A step begins with this call: see where the foreground is in it."""
        if not (self.settings.inject or self.settings.show_mask):
            return
        if self.settings.mask_source == "word":
            found = self.maps.next_mask(call.step)
            if found is not None:
                self._set(*found)
        elif self.mask is None:
            mask = self._lasting_mask(call)
            if mask is not None:
                mask = mask.expand(call.picture_count, -1, -1)
                self._set(mask, torch.ones(len(mask), dtype=torch.bool))

    def _set(self, mask: Tensor, usable: Tensor) -> None:
        before = (self.mask, self.usable)
        if not all(
            old is not None and torch.equal(old, new)
            for old, new in zip(before, (mask, usable), strict=True)
        ):
            self._regions.clear()
        self.mask, self.usable = mask, usable

    def _lasting_mask(self, call: Call) -> Tensor | None:
        """The mask [1 or pictures, H, W] of all steps."""
        if self.settings.mask_source == "all":
            return torch.ones(1, 1, 1, dtype=torch.bool)
        if self.settings.mask_source == "image" and self._image is not None:
            return self._image.cpu()
        if self.unit is None or self.unit.condition is None:
            self._note("no silhouette: the foreground unit's condition image is not known")
            return None
        condition, owners, pictures = self.unit.condition, list(call.pictures), call.picture_count
        if len(condition) == 1:
            rows = [0]
        elif len(condition) == len(owners) != pictures == len(set(owners)):
            rows = [owners.index(picture) for picture in range(pictures)]
        else:
            rows = [picture % len(condition) for picture in range(pictures)]
        return silhouette(condition.detach().cpu()[rows].float())

    def regions_for(self, call: Call, tokens: int | None, batch: int) -> Regions | None:
        """What a layer with so many image tokens needs of the mask; see `attention.RegionsFor`.

        Made once, for as long as the mask stays the same.
        """
        if self.mask is None or self.usable is None or batch != len(call.pictures):
            return None
        key = (call.latent_size, tokens, *call.pictures)
        if key not in self._regions:
            size, rows = call.latent_size, list(call.pictures)
            grid = size if tokens is None else token_grid(size, tokens)
            self._regions[key] = (
                None
                if grid is None
                else Regions(resize_mask(self.mask, grid)[rows], self.usable[rows])
            )
        return self._regions[key]

    def begin_call(self, call: Call) -> None:
        """Read what this UNet call says of the word, if that is of use for the next step."""
        if not call.whole:
            self.maps.pause()
        elif self.settings.reads_word:
            if call.prompts is not None:
                self.maps.change_prompts(call.prompts)
            # The mask of step t is read at step t - 1: nothing is read before that is of use.
            due = self.settings.show_mask or call.step + 1 >= self.settings.injection_start
            self.maps.begin_call(call, due)

    def observe(self, residuals: Sequence[Tensor], call: Call) -> None:
        """The unit has said this in this call: the automatic word is where it says most."""
        if self.settings.reads_word:
            self.maps.observe(residuals, call.pictures)

    def pause(self) -> None:
        """Read nothing until the next `begin_call`."""
        self.maps.pause()

    def close(self) -> None:
        """Remove every hook and let go of every tensor but the last mask and its map."""
        self.maps.detach()
        self._regions.clear()

    def fronts(self) -> list[float]:
        """The share of each picture that was in front at last, where that is known."""
        if self.mask is None or self.usable is None:
            return []
        return [float(mask.float().mean()) for mask in self.mask[self.usable]]

    def words(self, pictures: int) -> list[str]:
        """The word that each picture's mask is from, "star" or "star (automatic)"; "" for none."""
        several = len(self.maps.prompts) > 1
        how = "" if self.settings.foreground_word else " (automatic)"
        found = (self.maps.word.chosen.get(n if several else 0) for n in range(pictures))
        return [f"{word}{how}" if word else "" for word in found]

    def told_words(self) -> list[str]:
        """Each word that a mask was read from, with how it was chosen."""
        if self.settings.mask_source != "word":
            return []
        how = "given" if self.settings.foreground_word else "automatic"
        chosen = (self.maps.word.chosen[prompt] for prompt in sorted(self.maps.word.chosen))
        return [f"{word} ({how})" for word in dict.fromkeys(filter(None, chosen))]

"""The word's mask over a generation: what the UNet's attention says of the foreground word.

`foreground.py` has the formulas; here they meet the prompts of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .foreground import (
    CrossAttentionRecorder,
    cut_map,
    reduced_grid,
    scaled_map,
    word_map,
)
from .foreground_word import ForegroundWord, Search
from .fusion import smoothed_deviation
from .prompt import TokenizedPrompt
from .settings import Settings, fields
from .units import Call


class WordMask:
    """Turns recorded cross-attention into a mask per picture.

    Args:
        settings: with a start step that is a number.
        recorder: of the backbone's attention to the prompt.
        prompts: one per picture, or one for all, or none where the host does not know them.
        word: says which word each prompt's is.
        note: takes a sentence for the user.

    Attributes:
        heat: the words' maps behind the latest mask, scaled to [0, 1], [pictures, H, W].
    """

    def __init__(
        self,
        settings: Settings,
        recorder: CrossAttentionRecorder,
        prompts: Sequence[TokenizedPrompt],
        word: ForegroundWord,
        note: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.recorder = recorder
        self.prompts = list(prompts)
        self.word = word
        self.note = note
        self.heat: Tensor | None = None
        self._scheduled = False
        self._grid: tuple[int, int] | None = None
        # What was recorded in this step, each with the pictures that its rows are of; by picture
        # the foreground unit's latest deviation, with the rows that are of this picture.
        self._maps: list[tuple[list[int], Tensor]] = []
        self._deviation: dict[int, tuple[Tensor, list[int]]] = {}
        # Whose maps the recorder holds, and of how many pictures.
        self._shown: list[int] = []
        self._count = 0
        # The latest call that should have been recorded, until something was.
        self._unread: Call | None = None
        self._found = False

    def change_prompts(self, prompts: Sequence[TokenizedPrompt]) -> None:
        """From the coming call on these prompts are in force.

        A host that changes them knows those of all steps, and says itself in which of them a named
        word is not.
        """
        self.prompts = list(prompts)
        self._scheduled = True

    def attach(self) -> None:
        """Hook the UNet's cross-attention, where there is a prompt to look for words in."""
        if self.prompts:
            self.recorder.attach()
        else:
            self.note("the prompt is not known, so no word can be looked for")

    def detach(self) -> None:
        """Remove the hooks."""
        self.recorder.detach()
        self._maps.clear()
        self._deviation.clear()

    def pause(self) -> None:
        """Read nothing until the next `begin_call`."""
        self.recorder.pause()

    def begin_call(self, call: Call, due: bool = True) -> None:
        """Read the coming UNet call for its conditional rows, if it is `due` and has some.

        Raises what went wrong inside a hook of the UNet, if anything did.
        """
        self._check()
        self._grid = reduced_grid(call.latent_size, self.recorder.reduction)
        if due and (self._unread is None or call.conditional):
            self._unread = call
        if not due or not call.conditional:
            self.recorder.pause()
            return
        shown = list(call.conditional_pictures)
        if shown != self._shown:
            self._gather()
        self._shown, self._count = shown, call.picture_count
        self.recorder.begin_call(call.latent_size, call.conditional)

    def observe(self, residuals: Sequence[Tensor], pictures: Sequence[int]) -> None:
        """Note where the foreground unit has something to say, for the automatic word.

        Its deviation at the maps' own resolution. Nothing is waited for.
        """
        if not self.recorder.recording or not self.word.is_open(self.prompts):
            return
        fitting = [r for r in residuals[:-1] if r.ndim == 4 and r.shape[-2:] == self._grid]
        if not fitting or len(fitting[-1]) != len(pictures):
            return
        deviation = smoothed_deviation(fitting[-1])
        for picture in set(pictures):
            rows = [row for row, owner in enumerate(pictures) if owner == picture]
            self._deviation[picture] = deviation, rows

    def next_mask(self, step: int) -> tuple[Tensor, Tensor] | None:
        """The mask for `step` from what the step before recorded: an accelerator is asked once.

        Returns:
            Booleans on the CPU: the mask [pictures, H, W], and `usable` [pictures]. None when
            nothing was recorded, as before the first step is done. A picture of which nothing was
            recorded is not usable.
        """
        self._check()
        taken = self._take()
        unread, self._unread = self._unread, None
        if not taken:
            if unread is not None and self.prompts and not self._found:
                self.note(self._why_unread(unread))
            return None
        self._found = True
        final = step >= self.settings.injection_start
        tokens, *grid = taken[-1][1].shape[1:]
        pictures = range(self._count)
        searches = {
            index: self.word.search(index, prompt, tokens, self._scheduled)
            for index, prompt in enumerate(self.prompts)
            if len(self.prompts) == 1 or index in pictures
        }
        maps, deviation = self._fetch(taken, searches.values())
        usable = torch.zeros(self._count, dtype=torch.bool)
        heat = torch.zeros(self._count, *grid)
        for index, search in searches.items():
            rows = list(pictures) if len(self.prompts) == 1 else [index]
            shown = [deviation.get(picture) for picture in rows]
            prompt = self.prompts[index]
            word = self.word.choose(index, prompt, search, maps[rows], shown, final)
            if word is not None:
                heat[rows], usable[rows] = scaled_map(word_map(maps[rows], word.positions))
        self.heat = heat
        return cut_map(heat, usable, self.settings.mask_threshold), usable

    def _check(self) -> None:
        if self.recorder.error is not None:
            raise self.recorder.error

    def _gather(self) -> None:
        """Set aside what the recorder holds: the next call shows other pictures."""
        maps = self.recorder.take()
        if maps is not None:
            self._maps.append((self._shown, maps))

    def _take(self) -> list[tuple[list[int], Tensor]]:
        """What was recorded since the last time, of the latest shape: pictures, and their maps."""
        self._gather()
        gathered, self._maps = self._maps, []
        return [
            (shown, maps) for shown, maps in gathered if maps.shape[1:] == gathered[-1][1].shape[1:]
        ]

    def _fetch(
        self, taken: Sequence[tuple[list[int], Tensor]], searches: Iterable[Search]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What the searches look at, on the CPU.

        Returns:
            Mean maps [pictures, tokens, H, W], zeros where a picture has none; they end with the
            last token that is wanted. The foreground unit's deviation [h, w] by picture, where it
            is to be compared with.
        """
        compared = any(search.compares for search in searches)
        known = self._deviation if compared else {}
        deviations = {id(deviation): deviation for deviation, _rows in known.values()}
        last = max((p for s in searches for word in s.words for p in word.positions), default=0)
        found = fetched([*(maps[:, : last + 1] for _, maps in taken), *deviations.values()])
        here = dict(zip(deviations, found[len(taken) :], strict=True))
        maps = torch.zeros(self._count, *found[0].shape[1:])
        for picture in range(self._count):
            own = [
                recorded[row]
                for (shown, _), recorded in zip(taken, found, strict=False)
                for row, owner in enumerate(shown)
                if owner == picture
            ]
            if own:
                maps[picture] = torch.stack(own).mean(0)
        return maps, {n: here[id(all_)][rows].mean(0) for n, (all_, rows) in known.items()}

    def _why_unread(self, call: Call) -> str:
        """Why nothing was recorded in a step whose last call this was."""
        if not call.conditional:
            return "no mask: which rows of the UNet's batch the prompt belongs to is not known"
        if self.recorder.unheard:
            return f"no mask: the backbone's attention {self.recorder.unheard} and cannot be read"
        name = "mask_reduction"
        allowed = range(int(fields()[name].minimum), int(fields()[name].maximum) + 1)
        grids = {n: reduced_grid(call.latent_size, n) for n in allowed}
        fits = [str(n) for n, grid in grids.items() if math.prod(grid) in self.recorder.tokens]
        hint = f", but of / {', '.join(fits)} ({name})" if fits else ""
        reduction = self.recorder.reduction
        return f"no mask: no cross-attention maps of the latent's size / {reduction}{hint}"


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in float32 on the CPU: an accelerator is asked once, however many they are."""
    if len(tensors) == 1:
        return [tensors[0].float().cpu()]
    like = tensors[0].device
    flat = torch.cat([tensor.to(like, torch.float32).flatten() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

"""The word's mask over a generation: which word, and what the UNet's attention says of it.

`foreground.py` has the formulas; here they meet the prompts of a batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .foreground import (
    CrossAttentionRecorder,
    best_word,
    cut_map,
    reduced_grid,
    scaled_map,
    word_map,
)
from .fusion import smoothed_deviation
from .prompt import Sought, TokenizedPrompt, Word, find_word, why_missing, words
from .settings import Settings, fields
from .units import Call

log = logging.getLogger(__name__)


class WordMask:
    """Turns recorded cross-attention into a mask per picture.

    Args:
        settings: `foreground_word` ("" chooses one), `mask_threshold`, `mask_reduction`,
            `start_step`, a number.
        recorder: of the backbone's attention to the prompt.
        prompts: one per picture, or one for all, or none where the host does not know them.
        encode: token ids of a text, without special tokens.
        note: takes a sentence for the user.

    Attributes:
        chosen: for each prompt's index the word that its masks were made from, as the user or the
            tokenizer writes it; several, where the prompt's editing made an automatic one change,
            joined by commas; None where there was none so far.
        heat: the words' maps behind the latest mask, scaled to [0, 1], [pictures, H, W].
    """

    def __init__(
        self,
        settings: Settings,
        recorder: CrossAttentionRecorder,
        prompts: Sequence[TokenizedPrompt],
        encode: Callable[[str], list[int]] | None,
        note: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.recorder = recorder
        self.prompts = list(prompts)
        self.encode = encode
        self.note = note
        self.chosen: dict[int, str | None] = {}
        self.heat: Tensor | None = None
        # By prompt index: the word in force, all those used so far; by text what was decided.
        self._words: dict[int, Word | None] = {}
        self._settled: dict[int, list[str]] = {}
        self._decided: dict[tuple[int, TokenizedPrompt], Word | None] = {}
        self._scheduled = False
        self._grid: tuple[int, int] | None = None
        # By picture: what was recorded of it in this step, and the foreground unit's deviation.
        self._maps: dict[int, list[Tensor]] = {}
        self._deviation: dict[int, Tensor] = {}
        # Whose maps the recorder holds, and of how many pictures.
        self._shown: list[int] = []
        self._count = 0
        # The latest call that should have been recorded, until something was.
        self._unread: Call | None = None
        self._found = False

    @property
    def error(self) -> Exception | None:
        """What went wrong inside a hook of the UNet, if anything did."""
        return self.recorder.error

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
        """Read the coming UNet call for its conditional rows, if it is `due` and has some."""
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

        Its deviation at the maps' own resolution, averaged over the batch rows of each picture.
        """
        if self.settings.foreground_word or not self._undecided or not self.recorder.recording:
            return
        fitting = [r for r in residuals[:-1] if r.ndim == 4 and r.shape[-2:] == self._grid]
        if not fitting or len(fitting[-1]) != len(pictures):
            return
        deviation = smoothed_deviation(fitting[-1])
        owner = torch.tensor(list(pictures), device=deviation.device)
        for picture in set(pictures):
            self._deviation[picture] = deviation[owner == picture].mean(0)

    def next_mask(self, step: int) -> tuple[Tensor, Tensor] | None:
        """The mask for `step` from what the step before recorded.

        Returns:
            Booleans on the CPU: the mask [pictures, H, W], and `usable` [pictures]. None when
            nothing was recorded, as before the first step is done. A picture of which nothing was
            recorded is not usable.
        """
        maps = self._take()
        unread, self._unread = self._unread, None
        if maps is None:
            if unread is not None and self.prompts and not self._found:
                self.note(self._why_unread(unread))
            return None
        self._found = True
        final = step >= self.settings.injection_start
        usable = torch.zeros(len(maps), dtype=torch.bool)
        heat = torch.zeros(len(maps), *maps.shape[-2:])
        for index in range(len(self.prompts)):
            rows = slice(None) if len(self.prompts) == 1 else slice(index, index + 1)
            if not len(maps[rows]):
                continue
            word = self._word(index, rows, maps, final)
            if word is None:
                continue
            scaled, good = scaled_map(word_map(maps[rows], word.positions))
            heat[rows], usable[rows] = scaled.cpu(), good.cpu()
        self.heat = heat
        return cut_map(heat, usable, self.settings.mask_threshold), usable

    def _gather(self) -> None:
        """Set aside what the recorder holds: the next call shows other pictures."""
        maps = self.recorder.take()
        if maps is not None:
            for picture, found in zip(self._shown, maps, strict=True):
                self._maps.setdefault(picture, []).append(found)

    def _take(self) -> Tensor | None:
        """Mean maps [pictures, T, H, W] since the last time, zeros where a picture has none."""
        self._gather()
        gathered, self._maps = self._maps, {}
        if not gathered:
            return None
        latest = list(gathered.values())[-1][-1]
        maps = latest.new_zeros(self._count, *latest.shape)
        for picture, found in gathered.items():
            fitting = [one for one in found if one.shape == latest.shape]
            if fitting:
                maps[picture] = torch.stack(fitting).mean(0)
        return maps

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

    @property
    def _undecided(self) -> bool:
        return not self._decided.keys() >= set(enumerate(self.prompts))

    def _word(self, index: int, rows: slice, maps: Tensor, final: bool) -> Word | None:
        """The foreground word of a prompt; an automatic one is settled when injection begins."""
        prompt = self.prompts[index]
        if (index, prompt) in self._decided:
            self._words[index] = self._decided[index, prompt]
            return self._words[index]
        named = bool(self.settings.foreground_word)
        problem = _problem(prompt, maps)
        if problem:
            self.note(problem)
            word = None
        elif named:
            word = self._named(prompt)
        else:
            word = self._automatic(index, rows, maps, final)
        settled = self._settled.setdefault(index, [])
        if named or final:
            self._words[index] = self._decided[index, prompt] = word
            if word is not None and word.text not in settled:
                settled.append(word.text)
        provisional = [] if word is None else [word.text]
        self.chosen[index] = ", ".join(settled or provisional) or None
        return word

    def _named(self, prompt: TokenizedPrompt) -> Word | None:
        if self.encode is None:
            self.note("the prompt's tokenizer is not known, so no word can be looked for")
            return None
        try:
            word = Sought.of(self.settings.foreground_word, self.encode, prompt.literal)
        except Exception as error:  # a host's tokenizer: it costs the word, not the fusion
            given = self.settings.foreground_word
            self.note(f"word '{given}' cannot be looked for ({type(error).__name__}: {error})")
            return None
        positions = find_word(prompt, word.ids)
        if positions:
            return Word(word.text, tuple(positions))
        if not self._scheduled:
            self.note(why_missing(prompt, word))
        return None

    def _automatic(self, index: int, rows: slice, maps: Tensor, final: bool) -> Word | None:
        prompt = self.prompts[index]
        if any(token.piece is None for token in prompt.tokens):
            self.note("no automatic word with this text encoder: name one")
            return None
        candidates = words(prompt)
        # Where prompt editing has changed the rest, the foreground stays what it is.
        kept = [word for word in candidates if word.text in self._settled.get(index, ())]
        if kept:
            return kept[0]
        known = [self._deviation.get(picture) for picture in range(len(maps))[rows]]
        like = next((deviation for deviation in known if deviation is not None), None)
        best = None
        if candidates and like is not None:
            nothing = torch.zeros_like(like)
            deviation = torch.stack([nothing if one is None else one for one in known])
            best = best_word(maps[rows], candidates, deviation)
        if best is not None:
            word, agreement = best
            if final:
                log.debug(
                    "Cross-ControlNet chose the foreground word '%s' (agreement %.2f)",
                    word.text,
                    agreement,
                )
            return word
        if final and not candidates:
            self.note("the prompt has no word that can name the foreground: no mask")
        elif final:
            self.note("no word of the prompt agrees with the foreground unit: no mask")
        return None


def _problem(prompt: TokenizedPrompt, maps: Tensor) -> str:
    """Why no word of this prompt can be looked for in these maps [pictures, T, H, W], or ""."""
    last = max((token.positions[-1] for token in prompt.tokens), default=0)
    if last >= maps.shape[1]:
        return f"the prompt's tokens go beyond the {maps.shape[1]} that the UNet gets: no mask"
    return prompt.problem

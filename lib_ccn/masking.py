"""Words' maps over a generation: what the UNet's attention says of the foreground words.

`foreground.py` has the formulas; here they meet the prompts of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import devices
from .foreground import assigned_words, reduced_grid, scaled_map, word_map
from .foreground_word import ForegroundWord, Search
from .fusion import smoothed_deviation
from .prompt import TokenizedPrompt, Word
from .recorder import CrossAttentionRecorder
from .settings import Settings, fields
from .units import Call, Unit


@dataclass(frozen=True)
class WordsOfStep:
    """What a step says of the words, on the CPU.

    Attributes:
        heats: for each word its maps, scaled to [0, 1], [pictures, H, W].
        usable: for each word, bool [pictures], of which pictures they count.
        deviation: by unit and picture what was observed, [h, w].
    """

    heats: list[Tensor]
    usable: list[Tensor]
    deviation: dict[Unit, dict[int, Tensor]]


class WordMaps:
    """Turns recorded cross-attention into a map per word and picture.

    Args:
        settings: with a start step that is a number.
        recorder: of the backbone's attention to the prompt.
        prompts: one per picture, or one for all, or none where the host does not know them.
        words: each says which word of a prompt is wanted, for the unit that it is to name.
        note: takes a sentence for the user.
        observed: units whose deviation is wanted, whatever the words.
    """

    def __init__(
        self,
        settings: Settings,
        recorder: CrossAttentionRecorder,
        prompts: Sequence[TokenizedPrompt],
        words: Sequence[tuple[ForegroundWord, Unit]],
        note: Callable[[str], None],
        observed: Sequence[Unit] = (),
    ) -> None:
        self.settings = settings
        self.recorder = recorder
        self.prompts = list(prompts)
        self.words = list(words)
        self.note = note
        self.observed = set(observed)
        self._scheduled = False
        self._grid: tuple[int, int] | None = None
        # What was recorded in this step, each with the pictures that its rows are of, and with the
        # parts of their prompts; by unit and picture the latest deviation, with the rows that are
        # of this picture.
        self._maps: list[tuple[list[tuple[int, int]], Tensor]] = []
        self._deviation: dict[tuple[Unit, int], tuple[Tensor, list[int]]] = {}
        # What was sent for while the UNet was running.
        self._arrival: devices.Arrival | None = None
        # Whose maps the recorder holds, and of how many pictures.
        self._shown: list[tuple[int, int]] = []
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
            self.recorder.complete = self._send_for
            self.recorder.attach()
        else:
            self.note("the prompt is not known, so no word can be looked for")

    def detach(self) -> None:
        """Remove the hooks."""
        self.recorder.detach()
        self.recorder.complete = self._arrival = None
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
        shown = list(call.conditional_parts)
        if shown != self._shown:
            self._gather()
        self._shown, self._count = shown, call.picture_count
        self.recorder.begin_call(call.latent_size, call.conditional)

    def observe(self, unit: Unit, residuals: Sequence[Tensor], pictures: Sequence[int]) -> None:
        """Note where a unit has something to say, if its word is still to be chosen.

        Its deviation at the maps' own resolution. Nothing is waited for.
        """
        if not self.recorder.recording:
            return
        open_word = any(whose is unit and word.is_open(self.prompts) for word, whose in self.words)
        if not open_word and unit not in self.observed:
            return
        fitting = [r for r in residuals[:-1] if r.ndim == 4 and r.shape[-2:] == self._grid]
        if not fitting or len(fitting[-1]) != len(pictures):
            return
        deviation = smoothed_deviation(fitting[-1])
        for picture in set(pictures):
            rows = [row for row, owner in enumerate(pictures) if owner == picture]
            self._deviation[unit, picture] = deviation, rows

    def next_maps(self, step: int) -> WordsOfStep | None:
        """The maps for `step` from what the step before recorded: an accelerator is asked once.

        Returns:
            None when nothing was recorded, as before the first step is done. A picture of which
            nothing was recorded is not usable.
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
        grid = taken[-1][1].shape[2:]
        # The parts of a prompt may differ in length; the latest counts.
        tokens = {part: maps.shape[1] for shown, maps in taken for _picture, part in shown}
        one_for_all = len(self.prompts) == 1
        indices = [n for n in range(len(self.prompts)) if one_for_all or n < self._count]
        parts = {
            (n, index): word.part(self.prompts[index])
            for n, (word, _unit) in enumerate(self.words)
            for index in indices
        }
        searches = {
            (n, index): self.words[n][0].search(
                index,
                self.prompts[index].parts[part],
                tokens.get(part, max(tokens.values())),
                self._scheduled,
            )
            for (n, index), part in parts.items()
        }
        maps, deviation = self._fetch(taken, searches.values(), set(parts.values()))
        count = len(self.words)
        usable = [torch.zeros(self._count, dtype=torch.bool) for _ in range(count)]
        heats = [torch.zeros(self._count, *grid) for _ in range(count)]
        for index in indices:
            rows = list(range(self._count)) if one_for_all else [index]
            best = self._best_words(
                [searches[n, index] for n in range(count)], maps[0][rows], rows, deviation
            )
            for n, (word, _unit) in enumerate(self.words):
                part, search = parts[n, index], searches[n, index]
                prompt = self.prompts[index].parts[part]
                chosen = word.settle(index, prompt, search, best.get(n), final)
                if chosen is not None:
                    found = scaled_map(word_map(maps[part][rows], chosen.positions))
                    heats[n][rows], usable[n][rows] = found
        return WordsOfStep(heats, usable, deviation)

    def _best_words(
        self,
        searches: Sequence[Search],
        maps: Tensor,
        rows: Sequence[int],
        deviation: dict[Unit, dict[int, Tensor]],
    ) -> dict[int, Word]:
        """By number the best word of each search that compares some; none is given twice.

        Those that compare look at the first part of a prompt, and `maps` are of it.
        """
        comparing = [n for n, search in enumerate(searches) if search.compares]
        taken = {word for search in searches if not search.compares for word in search.words}
        scores = []
        for n in comparing:
            word, unit = self.words[n]
            shown = [deviation.get(unit, {}).get(picture) for picture in rows]
            known = word.scores(searches[n], maps, shown)
            scores.append([(one, score) for one, score in known if one not in taken])
        best = zip(comparing, assigned_words(scores), strict=True)
        return {n: word for n, word in best if word is not None}

    def _check(self) -> None:
        if self.recorder.error is not None:
            raise self.recorder.error

    def _gather(self) -> None:
        """Set aside what the recorder holds: the next call shows other pictures."""
        maps = self.recorder.take()
        if maps is not None:
            self._maps.append((self._shown, maps))

    def _take(self) -> list[tuple[list[tuple[int, int]], Tensor]]:
        """What was recorded since the last time: pictures and parts, and maps of the latest shape.

        Of the latest shape for those parts: sub-prompts may differ in length.
        """
        self._gather()
        gathered, self._maps = self._maps, []
        latest = {part: maps.shape[1:] for shown, maps in gathered for _picture, part in shown}
        grid = gathered[-1][1].shape[2:] if gathered else None
        return [
            (shown, maps)
            for shown, maps in gathered
            if maps.shape[2:] == grid and all(latest[part] == maps.shape[1:] for _, part in shown)
        ]

    def _fetch(
        self,
        taken: Sequence[tuple[list[tuple[int, int]], Tensor]],
        searches: Iterable[Search],
        parts: Iterable[int],
    ) -> tuple[dict[int, Tensor], dict[Unit, dict[int, Tensor]]]:
        """What the searches look at, on the CPU.

        Returns:
            By part of the prompts, the first and these, mean maps [pictures, tokens, H, W], zeros
            where a picture has none; they end with the last token that is wanted. By unit and
            picture the deviation [h, w], where it is to be compared with.
        """
        known = self._deviations(any(search.compares for search in searches))
        deviations = {id(deviation): deviation for deviation, _rows in known.values()}
        last = max((p for s in searches for word in s.words for p in word.positions), default=0)
        found = self._fetched([maps for _, maps in taken], list(deviations.values()), last + 1)
        here = dict(zip(deviations, found[len(taken) :], strict=True))
        recorded: dict[tuple[int, int], list[Tensor]] = {}
        for (shown, _), rows_of_call in zip(taken, found, strict=False):
            for of, row in zip(shown, rows_of_call, strict=True):
                recorded.setdefault(of, []).append(row)
        grid = found[0].shape[2:]
        maps = {part: torch.zeros(self._count, last + 1, *grid) for part in (0, *parts)}
        for (picture, part), own in recorded.items():
            if part in maps:
                maps[part][picture, : len(own[0])] = torch.stack(own).mean(0)
        by_unit: dict[Unit, dict[int, Tensor]] = {}
        for (unit, picture), (deviation, rows) in known.items():
            by_unit.setdefault(unit, {})[picture] = here[id(deviation)][rows].mean(0)
        return maps, by_unit

    def _send_for(self) -> None:
        """The maps of a call are there, and in most samplers it is the step's only one."""
        maps = self.recorder.mean()
        if maps is None or self._maps:  # with other pictures' maps they are fetched together
            return
        known = self._deviations(any(word.is_open(self.prompts) for word, _unit in self.words))
        deviations = {id(deviation): deviation for deviation, _rows in known.values()}
        self._arrival = devices.Arrival([maps, *deviations.values()])

    def _deviations(self, compared: bool) -> dict[tuple[Unit, int], tuple[Tensor, list[int]]]:
        """What was observed: of all units where words are compared, else of those wanted anyway."""
        return {
            (unit, picture): found
            for (unit, picture), found in self._deviation.items()
            if compared or unit in self.observed
        }

    def _fetched(
        self, maps: Sequence[Tensor], deviations: Sequence[Tensor], tokens: int
    ) -> list[Tensor]:
        """Maps, of their first tokens, and deviations, on the CPU."""
        sent_for, self._arrival = self._arrival, None
        known = {} if sent_for is None else {id(t): n for n, t in enumerate(sent_for.tensors)}
        if sent_for is not None and all(id(t) in known for t in (*maps, *deviations)):
            there = sent_for.taken()
            found = [there[known[id(t)]] for t in (*maps, *deviations)]
        else:
            found = devices.fetched([*(of_call[:, :tokens] for of_call in maps), *deviations])
        return [*(of_call[:, :tokens] for of_call in found[: len(maps)]), *found[len(maps) :]]

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

"""Which word of a prompt the foreground's mask is made from: the user's, or the best one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .foreground import word_scores
from .prompt import Sought, TokenizedPrompt, Word, find_word, why_missing, words

log = logging.getLogger(__name__)


class Search(NamedTuple):
    """Words of a prompt to look for; `compares`: to find the best of them, else there is one."""

    words: tuple[Word, ...] = ()
    compares: bool = False


class ForegroundWord:
    """The foreground word of each prompt of a batch.

    Args:
        given: the user's; "" chooses one.
        encode: token ids of a text, without special tokens.
        note: takes a sentence for the user.

    Attributes:
        chosen: for each prompt's index the word that its masks were made from, as the user or the
            tokenizer writes it; several, where the prompt's editing made an automatic one change,
            joined by commas; None where there was none so far.
    """

    def __init__(
        self,
        given: str,
        encode: Callable[[str], list[int]] | None,
        note: Callable[[str], None],
    ) -> None:
        self.given = given
        self.encode = encode
        self.note = note
        self.chosen: dict[int, str | None] = {}
        # By prompt index: all words that were settled so far; by text what was decided.
        self._settled: dict[int, list[str]] = {}
        self._decided: dict[tuple[int, TokenizedPrompt], Word | None] = {}

    def part(self, prompt: TokenizedPrompt) -> int:
        """Which of a prompt's parts to look at: the first with the user's word, or the first."""
        if not (prompt.more and self.given):
            return 0
        found = (self.named(part, scheduled=True) is not None for part in prompt.parts)
        return next((number for number, has_it in enumerate(found) if has_it), 0)

    def is_open(self, prompts: Sequence[TokenizedPrompt]) -> bool:
        """Whether an automatic word of one of these prompts is still to be chosen."""
        if self.given:
            return False
        return not self._decided.keys() >= set(enumerate(prompts))

    def search(
        self, index: int, prompt: TokenizedPrompt, tokens: int, scheduled: bool = False
    ) -> Search:
        """The words to look for in maps of so many tokens.

        Args:
            index: of the prompt.
            prompt: that is in force.
            tokens: that the UNet gets.
            scheduled: the host knows the prompts of all steps, and says itself in which of them a
                named word is not.
        """
        if (index, prompt) in self._decided:
            return Search(_one(self._decided[index, prompt]))
        problem = _problem(prompt, tokens)
        if problem:
            self.note(problem)
            return Search()
        if self.given:
            return Search(_one(self.named(prompt, scheduled)))
        if any(token.piece is None for token in prompt.tokens):
            self.note("no automatic word with this text encoder: name one")
            return Search()
        candidates = words(prompt)
        # Where prompt editing has changed the rest, the foreground stays what it is.
        kept = [word for word in candidates if word.text in self._settled.get(index, ())]
        return Search(tuple(kept[:1] or candidates), compares=not kept)

    def scores(
        self, search: Search, maps: Tensor, deviation: Sequence[Tensor | None]
    ) -> list[tuple[Word, float]]:
        """How well the words of a search agree with the unit's deviation, the best first.

        Args:
            search: that compares words.
            maps: [pictures, T, H, W] on the CPU.
            deviation: the foreground unit's, [h, w], of each of these pictures, where it is known.
        """
        like = next((one for one in deviation if one is not None), None)
        if like is None:
            return []
        nothing = torch.zeros_like(like)
        target = torch.stack([nothing if one is None else one for one in deviation])
        return word_scores(maps, search.words, target)

    def settle(
        self, index: int, prompt: TokenizedPrompt, search: Search, best: Word | None, final: bool
    ) -> Word | None:
        """The foreground word of a prompt; an automatic one is settled when injection begins.

        Args:
            index: of the prompt.
            prompt: that is in force.
            search: what was looked for.
            best: of the words that the search compares.
            final: whether injection begins.
        """
        if (index, prompt) in self._decided:
            return self._decided[index, prompt]
        word = best if search.compares else next(iter(search.words), None)
        if search.compares and final:
            self._tell_choice(search, word)
        settled = self._settled.setdefault(index, [])
        if self.given or final:
            self._decided[index, prompt] = word
            if word is not None and word.text not in settled:
                settled.append(word.text)
        provisional = [] if word is None else [word.text]
        self.chosen[index] = ", ".join(settled or provisional) or None
        return word

    def named(self, prompt: TokenizedPrompt, scheduled: bool = False) -> Word | None:
        """The user's word where a prompt has it; None, and a note, where it has not."""
        if self.encode is None:
            self.note("the prompt's tokenizer is not known, so no word can be looked for")
            return None
        try:
            word = Sought.of(self.given, self.encode, prompt.literal)
        except Exception as error:  # a host's tokenizer: it costs the word, not the fusion
            given = self.given
            self.note(f"word '{given}' cannot be looked for ({type(error).__name__}: {error})")
            return None
        positions = find_word(prompt, word.ids)
        if positions:
            return Word(word.text, tuple(positions))
        if not scheduled:
            self.note(why_missing(prompt, word))
        return None

    def _tell_choice(self, search: Search, word: Word | None) -> None:
        if word is not None:
            log.debug("Cross-ControlNet chose the foreground word '%s'", word.text)
        elif search.words:
            self.note("no word of the prompt agrees with the foreground unit: no mask")
        else:
            self.note("the prompt has no word that can name the foreground: no mask")


def _one(word: Word | None) -> tuple[Word, ...]:
    return () if word is None else (word,)


def _problem(prompt: TokenizedPrompt, tokens: int) -> str:
    """Why no word of this prompt can be looked for in maps of so many tokens, or ""."""
    last = max((token.positions[-1] for token in prompt.tokens), default=0)
    if last >= tokens:
        return f"the prompt's tokens go beyond the {tokens} that the UNet gets: no mask"
    return prompt.problem

"""The prompts of a WebUI's sampling run, token by token, at every step.

A WebUI's prompt may be several (`a dancer AND a forest`) and may change between steps
(`[star:heart:0.5]`). The WebUI has encoded them by now: its own parser says which texts, its own
text encoder where their tokens stand.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..prompt import Sought, TokenizedPrompt, find_word, layout, why_missing, with_names

log = logging.getLogger(__name__)


class Tokenizer:
    """A WebUI's text encoder, asked for tokens only.

    `engine` is what has `tokenize_line`: Forge's text processing engine, or the hijacked CLIP of
    the other WebUIs. For SDXL it is the first encoder; the second one has the same tokens.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.chunk = int(getattr(engine, "chunk_length", 75))
        self.bos, self.eos = int(engine.id_start), int(engine.id_end)
        self._piece = _piece_decoder(engine)
        self.layout = functools.lru_cache(maxsize=64)(self._layout)

    @classmethod
    def of(cls, model: Any) -> Tokenizer | None:
        """The tokenizer of a WebUI's model, or None where there is none that we know."""
        candidates = [
            getattr(model, "text_processing_engine", None),
            getattr(model, "text_processing_engine_l", None),
            getattr(model, "cond_stage_model", None),
            *_embedders(getattr(model, "conditioner", None)),
            *_embedders(getattr(model, "cond_stage_model", None)),
        ]
        for engine in candidates:
            needed = ("tokenize_line", "id_start", "id_end")
            if all(getattr(engine, name, None) is not None for name in needed):
                return cls(engine)
        return None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return [int(i) for i in self.engine.tokenize([text])[0]]

    def _layout(self, text: str) -> TokenizedPrompt:
        """Where the tokens of a text, weights and all, stand in its conditioning."""
        chunks, _count = self.engine.tokenize_line(text)
        placed = layout(
            [chunk.tokens for chunk in chunks],
            self.chunk,
            bos=self.bos,
            eos=self.eos,
            decode_piece=self._piece,
        )
        return with_names(placed, self._embeddings(chunks))

    def _embeddings(self, chunks: Sequence[Any]) -> Iterator[tuple[range, list[int]]]:
        """Where the vectors of embeddings stand, and the tokens of their names."""
        for number, chunk in enumerate(chunks):
            for offset, embedding in getattr(chunk, "fixes", None) or ():
                start = (self.chunk + 2) * number + 1 + offset
                end = min(start + int(embedding.vectors), start + self.chunk - offset)
                yield range(start, end), self.encode(embedding.name)


class Entry(NamedTuple):
    """One text of a sub-prompt's schedule, and which of the foreground words it has."""

    prompt: TokenizedPrompt
    has: frozenset[Sought] = frozenset()


class PromptBook:
    """The prompts of one batch: for each picture, its sub-prompts and their schedules.

    What cannot be read of one prompt costs that prompt's word: its tokens are then none, and their
    `problem` says why.

    Args:
        texts: one per picture, as the WebUI encoded them.
        cond: what it made of them: `batch[picture][sub-prompt].schedules[i]` with `end_at_step`
            and `cond` (a tensor [tokens, channels] or a dict with "crossattn").
        tokenizer: of the model.
        words: the foreground words; none for automatic ones.
        split: a prompt's sub-prompts.
        schedules_of: the texts of a sub-prompt's schedule, in order.
        hires: whether these are the prompts of the hires pass.
    """

    def __init__(
        self,
        texts: Sequence[str],
        cond: Any,
        tokenizer: Tokenizer,
        words: Sequence[str],
        split: Callable[[str], list[str]],
        schedules_of: Callable[[str], list[str]],
        hires: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._conds = [[part.schedules for part in parts] for parts in cond.batch]
        if len(texts) != len(self._conds):
            raise ValueError(f"{len(texts)} prompts for {len(self._conds)} pictures")
        self._words = [Sought.of(word, tokenizer.encode) for word in words]
        self._hires = hires
        self._split, self._schedules_of = split, schedules_of
        self._joined: dict[tuple[TokenizedPrompt, ...], TokenizedPrompt] = {}
        self._entries = [
            self._entries_of(text, parts) for text, parts in zip(texts, self._conds, strict=True)
        ]

    def missing_words(self) -> str | None:
        """Why foreground words are of no use to some pictures: no sub-prompt of theirs ever has it.

        Without a word: why the tokens of a prompt are not known, if that is so.
        """
        if not self._words:
            prompts = [e.prompt for parts in self._entries for entries in parts for e in entries]
            return next((prompt.problem for prompt in prompts if prompt.problem), None)
        found = dict.fromkeys(map(self._missing, self._words))
        return "; ".join(text for text in found if text is not None) or None

    def _missing(self, word: Sought) -> str | None:
        lacking = [
            number
            for number, parts in enumerate(self._entries)
            if not any(word in entry.has for entries in parts for entry in entries)
        ]
        if not lacking:
            return None
        known = [[e.prompt for entries in self._entries[i] for e in entries] for i in lacking]
        where = "the prompts" if len(set(map(tuple, known))) > 1 else "the prompt"
        where += " of the hires pass" if self._hires else ""
        if len(lacking) < len(self._entries):
            where = f"{where} of {_numbered('picture', [i + 1 for i in lacking])} of this batch"
        # All that the first of these pictures is ever asked for, as if it were one prompt.
        tokens = tuple(token for prompt in known[0] for token in prompt.tokens)
        problem = next((prompt.problem for prompt in known[0] if prompt.problem), "")
        whole = replace(known[0][0], tokens=tokens, problem=problem)
        return why_missing(whole, word, where)

    def partly_missing_words(self, order: int = 1) -> str | None:
        """In which steps only the prompts have a named foreground word, because of their editing.

        Steps are the sampler's, from 0, of `order` denoiser calls each.
        """
        return "; ".join(text for word in self._words for text in self._partly(word, order)) or None

    def _partly(self, word: Sought, order: int) -> Iterator[str]:
        pictures_by_steps: dict[str, list[int]] = {}
        for number in range(len(self._entries)):
            having, total = self._steps_having(word, number, order)
            if 0 < len(having) < total:
                pictures_by_steps.setdefault(_spans(having, total), []).append(number + 1)
        where = "the prompt of the hires pass" if self._hires else "the prompt"
        for steps, pictures in pictures_by_steps.items():
            alike = len(pictures) == len(self._entries)
            whose = "" if alike else f" of {_numbered('picture', pictures)} of this batch"
            yield f"word '{word.text}' is in {where}{whose} in {steps} only"

    def in_force(self, step: int) -> list[tuple[tuple[int, ...], TokenizedPrompt]]:
        """For each picture the sub-prompts to look at at the denoiser's `step`, and their tokens.

        The first one that has the most of the foreground words now; where others are in none of
        these, the first one that has the most of those too, and so on.
        """
        chosen = []
        for number in range(len(self._entries)):
            now = self._entries_at(number, step)
            left = frozenset(word for entry in now for word in entry.has)
            parts: list[int] = []
            while left or not parts:
                part = max(range(len(now)), key=lambda i: (len(now[i].has & left), -i))
                parts.append(part)
                left -= now[part].has
            chosen.append((tuple(parts), self._together(tuple(now[i].prompt for i in parts))))
        return chosen

    def _together(self, prompts: tuple[TokenizedPrompt, ...]) -> TokenizedPrompt:
        """The first of these sub-prompts, with the others beside it."""
        if len(prompts) == 1:
            return prompts[0]
        if prompts not in self._joined:
            self._joined[prompts] = replace(prompts[0], more=prompts[1:])
        return self._joined[prompts]

    def _entries_at(self, number: int, step: int) -> list[Entry]:
        """Of each sub-prompt of a picture what is in force at the denoiser's `step`."""
        parts = zip(self._entries[number], self._conds[number], strict=True)
        return [entries[_at(schedules, step)] for entries, schedules in parts]

    def _steps_having(self, word: Sought, number: int, order: int) -> tuple[list[int], int]:
        """The sampler's steps in which a picture's prompt has a word, and how many there are."""
        asked = max(schedules[-1].end_at_step for schedules in self._conds[number])
        having = {
            step // order
            for step in range(asked)
            if any(word in entry.has for entry in self._entries_at(number, step))
        }
        return sorted(having), -(-asked // order)

    def _entries_of(self, text: str, parts: Sequence[Sequence[Any]]) -> list[list[Entry]]:
        """The entries of a picture's sub-prompts, one for each of their conditionings."""
        subs = _quietly(self._split, text)
        if subs is None or len(subs) != len(parts):
            subs = [text] * len(parts)
        found = []
        for sub, schedules in zip(subs, parts, strict=True):
            texts: Sequence[str | None] = _quietly(self._schedules_of, sub) or []
            if len(texts) != len(schedules):
                # A prompt that does not change is what it is, whatever its parser makes of it.
                texts = [sub if len(schedules) == 1 else None] * len(schedules)
            found.append([self._entry(text) for text in texts])
        return found

    def _entry(self, text: str | None) -> Entry:
        """The tokens of a text; None for one that is not known."""
        problem = "the prompt could not be read"
        if text is None:
            problem += " (which of its words are for which steps)"
            return Entry(TokenizedPrompt((), problem=problem))
        try:
            prompt = self._tokenizer.layout(text)
            has = frozenset(word for word in self._words if find_word(prompt, word.ids))
            return Entry(prompt, has)
        except Exception as error:  # a host's own tokenizer
            log.debug("Cross-ControlNet cannot read the prompt %r", text, exc_info=error)
            problem += f" ({type(error).__name__}: {error})"
            return Entry(TokenizedPrompt((), problem=problem))

    def parts_of(self, context: Tensor, rows: Sequence[int], step: int) -> list[int]:
        """Which sub-prompt of the first picture each of these rows of the UNet's context is.

        `context` [batch, tokens, channels]; `rows` one of the first picture per chunk. WebUIs do
        not say, so that the embeddings are compared.
        """
        parts = self._conds[0]
        if len(parts) == 1:
            return [0] * len(rows)
        known = [_embedding(schedules[_at(schedules, step)].cond) for schedules in parts]
        return [_nearest(context[row], known) for row in rows]


def prompt_book(
    p: Any, cond: Any, hires: bool, tokenizer: Tokenizer | None, words: Sequence[str]
) -> PromptBook | None:
    """The prompts of the sampling run that `p` is about to begin; None where they are not known.

    Args:
        p: the WebUI's processing object.
        cond: its conditioning of this run, what a sampler gets.
        hires: whether this is the hires pass.
        tokenizer: of the WebUI's model, where that is known.
        words: the foreground words.
    """
    texts = list(getattr(p, "hr_prompts" if hires else "prompts", None) or [])
    if tokenizer is None or not texts or not hasattr(cond, "batch"):
        return None
    from modules import prompt_parser

    # WebUIs differ in what they may be told; they are told what they take.
    parse = prompt_parser.get_learned_conditioning_prompt_schedules
    told = {
        "hires_steps": _hires_steps(p) if hires else None,
        "use_old_scheduling": bool(getattr(_options(), "use_old_scheduling", False)),
    }
    taken = inspect.signature(parse).parameters
    told = {name: value for name, value in told.items() if name in taken}
    steps = getattr(p, "firstpass_steps", None) or p.steps

    def split(text: str) -> list[str]:
        # The flat list has a sub-prompt once only, however often the prompt repeats it.
        indexes, flat, _ = prompt_parser.get_multicond_prompt_list([text])
        return [flat[index] for index, _weight in indexes[0]]

    def schedules_of(text: str) -> list[str]:
        return [entry for _end, entry in parse([text], steps, **told)[0]]

    return PromptBook(texts, cond, tokenizer, words, split, schedules_of, hires)


def _hires_steps(p: Any) -> int:
    """How often the hires pass asks its denoiser, as the host counts for its schedules."""
    from modules import sd_samplers

    steps = getattr(p, "hr_second_pass_steps", 0) or p.steps
    name = getattr(p, "hr_sampler_name", None) or getattr(p, "sampler_name", None)
    config = sd_samplers.find_sampler_config(name)
    return int(config.total_steps(steps)) if config else int(steps)


def _options() -> Any:
    from modules import shared

    return shared.opts


def _embedders(conditioner: Any) -> list[Any]:
    return list(getattr(conditioner, "embedders", None) or [])


def _piece_decoder(engine: Any) -> Callable[[int], str] | None:
    wrapped = getattr(engine, "wrapped", None)
    for tokenizer in (getattr(engine, "tokenizer", None), getattr(wrapped, "tokenizer", None)):
        decode = getattr(tokenizer, "convert_ids_to_tokens", None)
        if decode is not None:
            return lambda number: str(decode(number))
    # The WebUIs' class for OpenCLIP (Stable Diffusion 2) has its tokenizer beside it.
    shared = getattr(sys.modules.get(type(engine).__module__), "tokenizer", None)
    pieces = getattr(shared, "decoder", None)
    return None if pieces is None else lambda number: str(pieces.get(number, ""))


def _quietly(parse: Callable[[str], list[str]], text: str) -> list[str] | None:
    """What a host's parser makes of a text; None where it fails."""
    try:
        return parse(text)
    except Exception as error:
        log.debug("Cross-ControlNet cannot parse the prompt %r", text, exc_info=error)
        return None


def _spans(steps: Sequence[int], total: int) -> str:
    """Name sorted steps: "step 3", "steps 10 to 19", or how many of `total` if not in a row."""
    first, last = steps[0], steps[-1]
    if last - first + 1 != len(steps):
        return f"{len(steps)} of {total} steps"
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _numbered(name: str, numbers: Sequence[int]) -> str:
    """Name things by number: "picture 2", "pictures 1, 2 and 4"."""
    *others, last = map(str, numbers)
    return f"{name}s {', '.join(others)} and {last}" if others else f"{name} {last}"


def _at(schedules: Sequence[Any], step: int) -> int:
    for index, entry in enumerate(schedules):
        if step <= entry.end_at_step:
            return index
    return 0


def _embedding(cond: Any) -> Tensor:
    found = cond["crossattn"] if isinstance(cond, dict) else cond
    assert isinstance(found, Tensor)
    return found


def _nearest(row: Tensor, known: Sequence[Tensor]) -> int:
    distances = []
    for embedding in known:
        length = min(len(row), len(embedding))
        here = row[:length].float()
        distances.append((here - embedding[:length].to(here)).abs().mean())
    return int(torch.stack(distances).argmin())

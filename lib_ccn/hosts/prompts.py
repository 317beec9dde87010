"""The prompts of a WebUI's sampling run, token by token, at every step.

A WebUI's prompt may be several (`a dancer AND a forest`) and may change between steps
(`[star:heart:0.5]`). The WebUI has encoded them by now: its own parser says which texts, its own
text encoder where their tokens stand.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..prompt import TokenizedPrompt, clean_word, find_word, layout, why_missing

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
            if all(hasattr(engine, name) for name in ("tokenize_line", "id_start", "id_end")):
                return cls(engine)
        return None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return [int(i) for i in self.engine.tokenize([text])[0]]

    def _layout(self, text: str) -> TokenizedPrompt:
        """Where the tokens of a text, weights and all, stand in its conditioning."""
        chunks, _count = self.engine.tokenize_line(text)
        return layout(
            [chunk.tokens for chunk in chunks],
            self.chunk,
            bos=self.bos,
            eos=self.eos,
            decode_piece=self._piece,
        )


class PromptBook:
    """The prompts of one batch: for each picture, its sub-prompts and their schedules.

    Args:
        texts: one per picture, as the WebUI encoded them.
        cond: what it made of them: `batch[picture][sub-prompt].schedules[i]` with `end_at_step`
            and `cond` (a tensor [tokens, channels] or a dict with "crossattn").
        tokenizer: of the model.
        word: the foreground word, "" for an automatic one.
        split: a prompt's sub-prompts.
        schedules_of: the texts of a sub-prompt's schedule, in order.
    """

    def __init__(
        self,
        texts: Sequence[str],
        cond: Any,
        tokenizer: Tokenizer,
        word: str,
        split: Callable[[str], list[str]],
        schedules_of: Callable[[str], list[str]],
    ) -> None:
        self._tokenizer = tokenizer
        self._conds = [[part.schedules for part in parts] for parts in cond.batch]
        self._texts = [
            [
                _as_many(schedules_of(sub), sub, len(schedules))
                for sub, schedules in zip(
                    _as_many(split(text), text, len(parts)), parts, strict=True
                )
            ]
            for text, parts in zip(texts, self._conds, strict=False)
        ]
        self._named = word
        self._word = tokenizer.encode(clean_word(word)) if word else []

    def missing_word(self) -> str | None:
        """Why a foreground word is of no use: no sub-prompt of any picture ever has it."""
        layouts = [
            self._tokenizer.layout(text)
            for parts in self._texts
            for texts in parts
            for text in texts
        ]
        if not self._named or any(find_word(prompt, self._word) for prompt in layouts):
            return None
        return why_missing(layouts[0], self._named, self._word)

    def in_force(self, step: int) -> list[tuple[int, TokenizedPrompt]]:
        """For each picture the sub-prompt to look at, and its tokens, at the denoiser's `step`.

        The first sub-prompt that has the foreground word now; else the first one.
        """
        chosen = []
        for texts, conds in zip(self._texts, self._conds, strict=True):
            now = [
                self._tokenizer.layout(texts[part][_at(schedules, step)])
                for part, schedules in enumerate(conds)
            ]
            having = (i for i, prompt in enumerate(now) if find_word(prompt, self._word))
            part = next(having, 0) if self._word else 0
            chosen.append((part, now[part]))
        return chosen

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
    p: Any, cond: Any, hires: bool, tokenizer: Tokenizer | None, word: str
) -> PromptBook | None:
    """The prompts of the sampling run that `p` is about to begin; None where they are not known.

    Args:
        p: the WebUI's processing object.
        cond: its conditioning of this run, what a sampler gets.
        hires: whether this is the hires pass.
        tokenizer: of the WebUI's model, where that is known.
        word: the foreground word.
    """
    texts = list(getattr(p, "hr_prompts" if hires else "prompts", None) or [])
    if tokenizer is None or not texts or not hasattr(cond, "batch"):
        return None
    from modules import prompt_parser

    base = getattr(p, "firstpass_steps", None) or p.steps
    later = _hires_steps(p) if hires else None
    old = bool(getattr(_options(), "use_old_scheduling", False))

    def split(text: str) -> list[str]:
        # The flat list has a sub-prompt once only, however often the prompt repeats it.
        indexes, flat, _ = prompt_parser.get_multicond_prompt_list([text])
        return [flat[index] for index, _weight in indexes[0]]

    def schedules_of(text: str) -> list[str]:
        args = (base, later, old) if later else (base, None, old)
        found = prompt_parser.get_learned_conditioning_prompt_schedules([text], *args)
        return [entry for _end, entry in found[0]]

    return PromptBook(texts, cond, tokenizer, word, split, schedules_of)


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


def _as_many(texts: list[str], whole: str, wanted: int) -> list[str]:
    """The texts that belong to `wanted` conditionings; the whole text where they do not fit."""
    return texts if len(texts) == wanted else [whole] * wanted


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

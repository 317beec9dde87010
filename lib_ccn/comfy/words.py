"""A word of a prompt, as ComfyUI's text encoders place it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..prompt import Sought, Token, TokenizedPrompt, find_word, layout, why_missing
from ..settings import Settings, SettingsError, page_message
from ..spelling import END_OF_WORD, clip_piece

# Encoders whose tokens stand in the conditioning as they are numbered here.
_CLIPS = ("l", "g", "h")
_T5_END = 1
_PLACEHOLDER = 0  # CLIP's "!", where an embedding's vector stands for a token


@dataclass(frozen=True, eq=False)
class PromptWord:
    """A foreground word and the prompt that it is looked for in.

    Attributes:
        word: "" chooses one.
        prompt: its tokens, and where they stand.
        encode: token ids of a text, without special tokens.
        embedding: [1, tokens, C], what the text encoder made of the prompt.
    """

    word: str
    prompt: TokenizedPrompt
    encode: Callable[[str], list[int]]
    embedding: Tensor

    @classmethod
    def of(cls, clip: Any, text: str, word: str, embedding: Tensor) -> PromptWord:
        """Look for a word in a prompt that this text encoder has encoded.

        What goes wrong costs the word: the prompt's `problem` says what.
        """

        def encode(wanted: str) -> list[int]:
            plain = wanted.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
            return [token.id for token in tokens_of(clip, plain).tokens]

        try:
            word = Settings(foreground_word=word).foreground_word
            prompt = tokens_of(clip, text)
        except SettingsError as error:
            word, prompt = "", TokenizedPrompt((), problem=page_message(error))
        except Exception as error:  # a text encoder that is made in another way
            problem = f"the prompt could not be read ({type(error).__name__}: {error})"
            prompt = TokenizedPrompt((), problem=problem)
        return cls(word, prompt, encode, embedding)

    def missing(self, word: str | None = None) -> str | None:
        """Why the word, or another one, is of no use; None where it is in the prompt."""
        word = self.word if word is None else word
        if self.prompt.problem:
            return self.prompt.problem
        if not word.strip():
            return None
        sought = Sought.of(word, self.encode)
        return None if find_word(self.prompt, sought.ids) else why_missing(self.prompt, sought)

    def is_of(self, conditioning: Tensor) -> bool:
        """Whether this conditioning [B, tokens, C] begins with what the prompt was encoded to."""
        return begins_alike(conditioning, self.embedding)


def begins_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two conditionings [B, tokens, C] are the same as far as both go."""
    if one is other:
        return True
    if one.ndim != 3 or other.ndim != 3 or one.shape[2] != other.shape[2]:
        return False
    length = min(one.shape[1], other.shape[1])
    first, second = one[:1, :length], other[:1, :length]
    return bool(torch.equal(first.to(second), second))


def tokens_of(clip: Any, text: str) -> TokenizedPrompt:
    """Where the tokens of a prompt, weights and all, stand in its conditioning."""
    by_encoder = clip.tokenize(text)
    if set(by_encoder) == {"l", "t5xxl"}:  # FLUX: only T5's reach attention
        return _t5_tokens(by_encoder["t5xxl"], _pieces(getattr(clip.tokenizer, "t5xxl", None)))
    name = next((name for name in _CLIPS if name in by_encoder), None)
    if name is None or not set(by_encoder) <= set(_CLIPS):
        encoders = ", ".join(by_encoder)
        problem = f"a word cannot be looked for in a prompt for these text encoders: {encoders}"
        return TokenizedPrompt((), problem=problem)
    tokenizer = getattr(clip.tokenizer, f"clip_{name}", None)
    chunks = [_ids(chunk) for chunk in by_encoder[name]]
    return layout(
        chunks,
        len(chunks[0]) - 2,
        bos=int(getattr(tokenizer, "start_token", chunks[0][0])),
        eos=int(getattr(tokenizer, "end_token", chunks[0][-1])),
        decode_piece=_pieces(tokenizer),
    )


def _ids(chunk: Any) -> list[int]:
    return [token if isinstance(token, int) else _PLACEHOLDER for token, *_weight in chunk]


def _t5_tokens(chunks: Any, piece: Callable[[int], str] | None) -> TokenizedPrompt:
    """T5's tokens stand from the first place on; what follows their end is padding."""
    ids = [number for chunk in chunks for number in _ids(chunk)]
    ids = ids[: ids.index(_T5_END)] if _T5_END in ids else ids

    def spell(numbers: Sequence[int]) -> list[str]:
        pieces = [piece(number) if piece else "" for number in numbers]
        return [clip_piece(one, pieces[n + 1 : n + 2]) for n, one in enumerate(pieces)]

    placed = zip(ids, spell(ids), strict=True)
    tokens = tuple(
        Token(number, place, spelt if piece else None)
        for place, (number, spelt) in enumerate(placed)
    )
    return TokenizedPrompt(tokens, 1, max(len(ids), 1), (), spell if piece else None)


def _pieces(tokenizer: Any) -> Callable[[int], str] | None:
    pieces = getattr(tokenizer, "inv_vocab", None)
    return None if pieces is None else lambda number: str(pieces.get(number, END_OF_WORD))

"""From a foreground word to token positions in the text conditioning.

Stable Diffusion's conditioning is a row of chunks of BOS + 75 content tokens + EOS; content token
p of chunk c sits at 77 c + 1 + p. A host that shows its real token ids is served by `layout`, a
host that shows only the prompt by `tokenize`, which places tokens as the WebUIs do. What tokens
spell, and where a word may begin in it, is in `spelling.py`. Only the standard library is imported.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from .emphasis import Segment, parse_weights, strip_weights
from .spelling import (
    END_OF_WORD,
    UNKNOWN,
    Letter,
    combines,
    is_mark,
    letters,
    occurrences,
    script,
    split_words,
    written,
)

BOS, EOS = 49406, 49407
CHUNK = 75
BACKTRACK = 20

_FUNCTION_WORDS = """
    a an the this that these those some any each every no not of over and or but nor with without
    on onto in into inside at by for from to under above below behind beside between before after
    near front through across around against among along as is are was were be been being
    its his her their it he she they very while 's 't 're 've 'm 'll 'd
    の に は が を と で も へ や から まで より 的 了 和 与 在 是 有 之 及 也
"""
_ENDS = ",.;:!?\"'，。、；：！？"  # noqa: RUF001
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Token:
    """A content token: its id, its index in the conditioning sequence, and its piece if known.

    Where an embedding stands for its name, a token of the name has all `span` positions of it.
    """

    id: int
    position: int
    piece: str | None = None
    span: int = 1

    @property
    def positions(self) -> range:
        """Where it stands in the conditioning sequence."""
        return range(self.position, self.position + self.span)


@dataclass(frozen=True)
class TokenizedPrompt:
    """The content tokens of a prompt in order, and how many chunks they fill.

    `dropped` holds the ids that did not fit where the number of chunks is limited; `spell` gives
    ids' pieces, if the vocabulary is known; `problem` is why the tokens are not known; where it is
    `literal`, brackets in it are no weights; `more` are further sub-prompts of the same picture
    (`a dancer AND a horse`), each with a conditioning of its own, that words are looked for in too.
    """

    tokens: tuple[Token, ...]
    chunks: int = 1
    chunk: int = CHUNK
    dropped: tuple[int, ...] = ()
    spell: Callable[[Sequence[int]], Sequence[str]] | None = field(
        default=None, compare=False, repr=False
    )
    problem: str = ""
    literal: bool = False
    more: tuple[TokenizedPrompt, ...] = ()

    @property
    def parts(self) -> tuple[TokenizedPrompt, ...]:
        """This sub-prompt and those beside it."""
        return (self, *self.more)

    @property
    def length(self) -> int:
        """Tokens of the whole conditioning sequence, BOS, EOS and padding included."""
        return self.chunks * (self.chunk + 2)

    @cached_property
    def letters(self) -> list[Letter] | None:
        """What the tokens spell; None where a piece is not known."""
        pieces = [
            (token.piece, token.positions) for token in self.tokens if token.piece is not None
        ]
        return letters(pieces) if len(pieces) == len(self.tokens) else None


class Sought(NamedTuple):
    """A foreground word as it is looked for: plain text and its token ids, "" and () for none."""

    text: str
    ids: tuple[int, ...]

    @classmethod
    def of(cls, word: str, encode: Callable[[str], Sequence[int]], literal: bool = False) -> Sought:
        """Clean a word as a user writes it; for `literal` see `clean_word`."""
        text = clean_word(word, literal)
        return cls(text, tuple(encode(text)) if text else ())


class Word(NamedTuple):
    """A word of a prompt, in the tokenizer's spelling, and all its token positions, sorted."""

    text: str
    positions: tuple[int, ...]


def layout(
    ids: Iterable[Any],
    chunk: int = CHUNK,
    *,
    bos: int = BOS,
    eos: int = EOS,
    decode_piece: Callable[[int], str] | None = None,
) -> TokenizedPrompt:
    """Place token ids that a host has made: a list (or tensor) of chunks, or one flat list.

    A chunk may begin with `bos`; it ends at its first `eos`, whatever padding follows. A flat
    list is cut every `chunk` ids, or every `chunk + 2` if it begins with `bos`. Raises
    ValueError if a chunk holds more than `chunk` content tokens.
    """
    rows = [_plain(row) for row in _plain(ids)]
    if rows and isinstance(rows[0], int):
        step = chunk + 2 if rows[0] == bos else chunk
        rows = [rows[i : i + step] for i in range(0, len(rows), step)]
    contents = []
    for row in rows:
        content = row[1:] if row[:1] == [bos] else row
        content = content[: content.index(eos)] if eos in content else content
        if len(content) > chunk:
            raise ValueError(f"{len(content)} content tokens in a chunk of {chunk} (bos {bos}?)")
        contents.append(content)
    return _place(contents, chunk, decode_piece)


def tokenize(
    prompt: str,
    encode: Callable[[str], Sequence[int]],
    *,
    weighted: bool = True,
    max_chunks: int | None = None,
    chunk: int = CHUNK,
    backtrack: int = BACKTRACK,
    decode_piece: Callable[[int], str] | None = None,
) -> TokenizedPrompt:
    """Place the tokens of a prompt as the WebUIs do; `encode` adds no special tokens.

    When a chunk is full, what follows its last comma moves to the next one, if that is at most
    `backtrack` tokens. Ids beyond `max_chunks` are dropped. Diffusers pipelines take the prompt
    literally and in one chunk: `weighted=False, max_chunks=1`.
    """
    comma = list(encode(","))
    chunks: list[list[int]] = [[]]
    for segment in parse_weights(prompt) if weighted else [Segment(prompt, 1.0)]:
        if segment.is_break:
            chunks.append([])
            continue
        for token in encode(segment.text):
            current = chunks[-1]
            if len(current) == chunk and len(chunks) != max_chunks:
                moved = 0 if [token] == comma else _after_comma(current, comma, backtrack)
                chunks.append(current[chunk - moved :])
                del current[chunk - moved :]
            chunks[-1].append(int(token))
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()
    dropped: list[int] = []
    if max_chunks is not None:
        kept = chunks[:max_chunks]
        dropped = kept[-1][chunk:] + [token for rest in chunks[max_chunks:] for token in rest]
        chunks = [*kept[:-1], kept[-1][:chunk]]
    return _place(chunks, chunk, decode_piece, dropped)


def clean_word(word: str, literal: bool = False) -> str:
    """Return a foreground word as plain text: no weights, no punctuation at its ends.

    Where a prompt is taken literally, brackets are no weights.
    """
    return (word if literal else strip_weights(word)).strip(string.whitespace + _ENDS)


def with_names(
    tokenized: TokenizedPrompt, names: Iterable[tuple[range, Sequence[int]]]
) -> TokenizedPrompt:
    """Put the tokens of a name where others stand for it, as an embedding's vectors do.

    `names` has the positions that stand for a name, and the ids of the name's own tokens.
    """
    taken: set[int] = set()
    named: list[Token] = []
    for positions, ids in names:
        taken.update(positions)
        pieces: list[str | None] = [None] * len(ids)
        if tokenized.spell is not None and ids:
            pieces = [*tokenized.spell(ids)]
            pieces[-1] = f"{pieces[-1]}".removesuffix(END_OF_WORD) + END_OF_WORD
        named += [
            Token(number, positions.start, piece, len(positions))
            for number, piece in zip(ids, pieces, strict=True)
        ]
    kept = [token for token in tokenized.tokens if token.position not in taken]
    everything = sorted([*kept, *named], key=lambda token: token.position)
    return replace(tokenized, tokens=tuple(everything))


def find_word(tokenized: TokenizedPrompt, word_ids: Sequence[int]) -> list[int]:
    """Return the positions of all occurrences of a word or phrase, sorted; empty if absent.

    `word_ids` are those of `Sought`. An occurrence may cross a chunk boundary. Where pieces
    are known, their letters count and not the ids: a word begins and ends where words do, and in
    scripts without spaces anywhere, so that it may be a part of what CLIP takes for one word.
    """
    text, found = tokenized.letters, set[int]()
    if text is not None and tokenized.spell is not None:
        word = letters((piece, ()) for piece in tokenized.spell(word_ids))
        for place in occurrences(text, word):
            found.update(position for i in place for position in text[i].positions)
        return sorted(found)
    ids, wanted = [t.id for t in tokenized.tokens], list(word_ids)
    for start in range(len(ids) - len(wanted) + 1) if wanted else ():
        if ids[start : start + len(wanted)] == wanted:
            for token in tokenized.tokens[start : start + len(wanted)]:
                found.update(token.positions)
    return sorted(found)


def why_missing(tokenized: TokenizedPrompt, word: Sought, where: str = "the prompt") -> str:
    """Say for people why `find_word` found nothing; `where` names the prompt."""
    shown, word_ids = word
    if tokenized.problem:
        return tokenized.problem
    if not shown or not word_ids:
        return "no foreground word is given"
    if tokenized.dropped and find_word(_with_dropped(tokenized), word_ids):
        read = tokenized.chunks * tokenized.chunk
        return f"word '{shown}' lies beyond the {read} tokens of {where} that the model reads"
    if tokenized.spell is not None and any(UNKNOWN in p for p in tokenized.spell(word_ids)):
        return f"the text encoder does not know the letters of word '{shown}'"
    near: list[str] = []
    if tokenized.letters is not None:
        near = difflib.get_close_matches(shown.lower(), [w.text for w in words(tokenized)], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"word '{shown}' is not in {where}{hint}"


def words(
    tokenized: TokenizedPrompt, decode_piece: Callable[[int], str] | None = None
) -> list[Word]:
    """Return the words that can name a foreground, in order, each distinct text once.

    `decode_piece` gives an id's entry of CLIP's vocabulary, such as "star</w>" (default: the
    tokens' own pieces; raises ValueError if there are none). Words of punctuation or digits
    only, single kana or Thai letters, and function words (`STOP_WORDS`) are left out. How scripts
    without spaces are cut is in `spelling.split_words`.
    """
    text = replace(tokenized, tokens=_with_pieces(tokenized.tokens, decode_piece)).letters
    if text is None:
        raise ValueError("the pieces of the tokens are not known: give decode_piece")
    found: dict[str, set[int]] = {}
    for group in split_words(text):
        name = written(group)
        if _names_something(name):
            found.setdefault(name, set()).update(*(letter.positions for letter in group))
    return [Word(name, tuple(sorted(positions))) for name, positions in found.items()]


def _names_something(text: str) -> bool:
    if len(text) == 1 and script(text) not in ("", "CJK"):  # a syllable or less
        return False
    if text in STOP_WORDS or text == UNKNOWN:
        return False
    return not all(is_mark(char) or combines(char) for char in text)


def _plain(values: Any) -> Any:
    if hasattr(values, "tolist"):  # tensors and arrays
        return values.tolist()
    return values if isinstance(values, int) else list(values)


def _place(
    contents: list[list[int]],
    chunk: int,
    decode_piece: Callable[[int], str] | None,
    dropped: Sequence[int] = (),
) -> TokenizedPrompt:
    tokens = tuple(
        Token(token, (chunk + 2) * c + 1 + p)
        for c, content in enumerate(contents)
        for p, token in enumerate(content)
    )
    placed = _with_pieces(tokens, decode_piece)
    decode = decode_piece
    spell = None if decode is None else lambda ids: [decode(number) for number in ids]
    return TokenizedPrompt(placed, max(len(contents), 1), chunk, tuple(dropped), spell)


def _with_dropped(tokenized: TokenizedPrompt) -> TokenizedPrompt:
    """The prompt with what the model does not read behind it, its positions made up."""
    pieces: Sequence[str | None] = [None] * len(tokenized.dropped)
    if tokenized.spell is not None:
        pieces = tokenized.spell(tokenized.dropped)
    behind = (
        Token(number, tokenized.length, piece)
        for number, piece in zip(tokenized.dropped, pieces, strict=True)
    )
    return replace(tokenized, tokens=(*tokenized.tokens, *behind), dropped=())


def _with_pieces(
    tokens: tuple[Token, ...], decode_piece: Callable[[int], str] | None
) -> tuple[Token, ...]:
    if decode_piece is None:
        return tokens
    return tuple(replace(token, piece=decode_piece(token.id)) for token in tokens)


def _after_comma(content: list[int], comma: list[int], backtrack: int) -> int:
    """Count the tokens behind the last comma, if it is one of the last `backtrack`; else 0."""
    for behind, token in enumerate(reversed(content[-backtrack:] if backtrack else [])):
        if [token] == comma:
            return behind
    return 0

"""From a foreground word to token positions in the text conditioning.

Stable Diffusion's conditioning is a row of chunks of BOS + 75 content tokens + EOS; content token
p of chunk c sits at 77 c + 1 + p. A host that shows its real token ids is served by `layout`, a
host that shows only the prompt by `tokenize`, which places tokens as the WebUIs do. Only the
standard library is imported.
"""

from __future__ import annotations

import difflib
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BOS, EOS = 49406, 49407
CHUNK = 75
BACKTRACK = 20
END_OF_WORD = "</w>"
PLACEHOLDER = "!"  # CLIP's id 0, which the WebUIs put where an embedding stands
_MARKS = frozenset(string.punctuation)

_FUNCTION_WORDS = """
    a an the this that these those some any each every no not of over and or but nor with without
    on onto in into inside at by for from to under above below behind beside between before after
    near front through across around against among along as is are was were be been being
    its his her their it he she they very while 's 't 're 've 'm 'll 'd
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())

_SYNTAX = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)
    | (?P<close>[)\]])
    | [^\\()\[\]:]+
    | :
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


class Segment(NamedTuple):
    """A stretch of a prompt with one weight, or a BREAK (whose text is "BREAK", weight -1)."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """True where the prompt asks for a new chunk."""
        return self == ("BREAK", -1.0)


@dataclass(frozen=True)
class Token:
    """A content token: its id, its index in the conditioning sequence, and its piece if known."""

    id: int
    position: int
    piece: str | None = None


@dataclass(frozen=True)
class TokenizedPrompt:
    """The content tokens of a prompt in order, and how many chunks they fill.

    `dropped` holds the ids that did not fit where the number of chunks is limited.
    """

    tokens: tuple[Token, ...]
    chunks: int = 1
    chunk: int = CHUNK
    dropped: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the whole conditioning sequence, BOS, EOS and padding included."""
        return self.chunks * (self.chunk + 2)


class Word(NamedTuple):
    """A word of a prompt, in the tokenizer's spelling, and all its token positions, sorted."""

    text: str
    positions: tuple[int, ...]


def parse_weights(prompt: str) -> list[Segment]:
    """Split a prompt in the WebUIs' emphasis syntax into segments of equal weight; never raises.

    `(a)` is weighted 1.1, `[a]` 1/1.1, `(a:1.3)` 1.3, nested ones multiply, an unclosed bracket
    lasts to the end; a backslash makes a bracket literal; BREAK begins a new chunk. Like the
    WebUIs, a BREAK inside a bracket is taken for a word unless its weight is 1. Prompt
    editing (`[a:b:0.5]`, `[a|b]`), AND and `<lora:...>` are resolved by the host before this.
    """
    parts: list[list[Any]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, weight: float) -> None:
        for part in parts[opened[bracket].pop() :]:
            part[1] *= weight

    for match in _SYNTAX.finditer(prompt):
        escaped, opening, weight, closing = match.group("escaped", "open", "weight", "close")
        if escaped is not None:
            parts.append([escaped, 1.0])
        elif opening:
            opened[opening].append(len(parts))
        elif weight and opened["("]:
            close("(", float(weight))
        elif closing == ")" and opened["("]:
            close("(", 1.1)
        elif closing == "]" and opened["["]:
            close("[", 1 / 1.1)
        else:
            for i, text in enumerate(_BREAK.split(match.group())):
                if i:
                    parts[-1][0] = parts[-1][0].rstrip()
                    parts.append(["BREAK", -1.0])
                parts.append([text.lstrip() if i else text, 1.0])
    for bracket, weight in (("(", 1.1), ("[", 1 / 1.1)):
        while opened[bracket]:
            close(bracket, weight)

    segments: list[Segment] = []
    for text, weight in parts:
        if segments and segments[-1].weight == weight:
            text = segments.pop().text + text
        segments.append(Segment(text, weight))
    return segments or [Segment("", 1.0)]


def strip_weights(prompt: str) -> str:
    """Return the prompt as plain text: no weights, brackets or escapes, a space for each BREAK."""
    return "".join(" " if s.is_break else s.text for s in parse_weights(prompt))


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


def clean_word(word: str) -> str:
    """Return a foreground word as plain text: no weights, no punctuation at its ends."""
    return strip_weights(word).strip(string.whitespace + ",.;:!?\"'")


def find_word(tokenized: TokenizedPrompt, word_ids: Sequence[int]) -> list[int]:
    """Return the positions of all occurrences of a word or phrase, sorted; empty if absent.

    `word_ids` is `encode(clean_word(word))`. An occurrence may cross a chunk boundary. Where
    pieces are known, it must begin at the beginning of a word.
    """
    ids, wanted = [t.id for t in tokenized.tokens], list(word_ids)
    found: set[int] = set()
    for start in range(len(ids) - len(wanted) + 1) if wanted else ():
        if ids[start : start + len(wanted)] == wanted and _begins_word(tokenized.tokens, start):
            found.update(t.position for t in tokenized.tokens[start : start + len(wanted)])
    return sorted(found)


def why_missing(tokenized: TokenizedPrompt, word: str, word_ids: Sequence[int]) -> str:
    """Say for people why `find_word` found nothing."""
    shown = clean_word(word)
    if not shown or not word_ids:
        return "no foreground word is given"
    ids = [t.id for t in tokenized.tokens] + list(tokenized.dropped)
    whole = _place([ids], len(ids), None)
    if tokenized.dropped and find_word(whole, word_ids):
        read = tokenized.chunks * tokenized.chunk
        return f"word '{shown}' lies beyond the {read} tokens of the prompt that the model reads"
    near = []
    if all(t.piece is not None for t in tokenized.tokens):
        near = difflib.get_close_matches(shown.lower(), [w.text for w in words(tokenized)], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"word '{shown}' is not in the prompt{hint}"


def words(
    tokenized: TokenizedPrompt, decode_piece: Callable[[int], str] | None = None
) -> list[Word]:
    """Return the words that can name a foreground, in order, each distinct text once.

    `decode_piece` gives an id's entry of CLIP's vocabulary, such as "star</w>" (default: the
    tokens' own pieces; raises ValueError if there are none). Words of punctuation or digits
    only, and function words (`STOP_WORDS`), are left out.
    """
    tokens = _with_pieces(tokenized.tokens, decode_piece)
    grouped: list[tuple[str, list[int]]] = []
    for i, token in enumerate(tokens):
        if token.piece is None:
            raise ValueError("the pieces of the tokens are not known: give decode_piece")
        piece = token.piece.removesuffix(END_OF_WORD)
        if grouped and not _begins_word(tokens, i):
            text, positions = grouped.pop()
            grouped.append((text + piece, [*positions, token.position]))
        else:
            grouped.append((piece, [token.position]))
    found: dict[str, list[int]] = {}
    for raw, positions in grouped:
        text = _from_byte_letters(raw).lower()
        if text not in STOP_WORDS and not all(map(is_mark, text)):
            found.setdefault(text, []).extend(positions)
    return [Word(text, tuple(positions)) for text, positions in found.items()]


def is_mark(char: str) -> bool:
    """Whether a character is no part of a word that names something: punctuation or a digit."""
    return char in _MARKS or unicodedata.category(char)[0] in "PNZ"


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
    return TokenizedPrompt(placed, max(len(contents), 1), chunk, tuple(dropped))


def _with_pieces(
    tokens: tuple[Token, ...], decode_piece: Callable[[int], str] | None
) -> tuple[Token, ...]:
    if decode_piece is None:
        return tokens
    return tuple(Token(t.id, t.position, decode_piece(t.id)) for t in tokens)


def _after_comma(content: list[int], comma: list[int], backtrack: int) -> int:
    """Count the tokens behind the last comma, if it is one of the last `backtrack`; else 0."""
    for behind, token in enumerate(reversed(content[-backtrack:] if backtrack else [])):
        if [token] == comma:
            return behind
    return 0


def _begins_word(tokens: Sequence[Token], index: int) -> bool:
    before = tokens[index - 1].piece if index else None
    here = tokens[index].piece
    if before is None or here is None or before.endswith(END_OF_WORD):
        return True
    return before == PLACEHOLDER and not set(here[:1]) <= _MARKS


def _byte_letters() -> dict[str, int]:
    """Return the letter that byte-level BPE writes for each byte, as GPT-2 introduced it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {**{chr(b): b for b in shown}, **{chr(256 + i): b for i, b in enumerate(hidden)}}


_BYTES = _byte_letters()


def _from_byte_letters(text: str) -> str:
    try:
        return bytes(_BYTES[c] for c in text).decode()
    except (KeyError, UnicodeDecodeError):  # a vocabulary that is not byte-level
        return text

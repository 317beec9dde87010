"""What tokens spell, letter by letter, and where words begin in it, whatever the script.

CLIP's tokens are pieces of UTF-8: a letter of Japanese may be three tokens, a token the end of one
letter and the beginning of the next. Where a script has no spaces, a word is a part of what CLIP
takes for one word, so that it is found by letters and not by tokens. Only the standard library is
imported, whose character names tell scripts apart.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

END_OF_WORD = "</w>"
PLACEHOLDER = "!"  # CLIP's id 0, which the WebUIs put where an embedding stands
BEGINS_WORD = "\u2581"  # what SentencePiece writes for a space
_CONTRACTED = ("s", "t", "re", "ve", "m", "ll", "d")  # CLIP keeps the apostrophe before these
UNKNOWN = "<unk>"  # what SentencePiece's vocabularies have for a letter that they lack

_SCRIPTS = "CJK HIRAGANA KATAKANA BOPOMOFO THAI LAO KHMER MYANMAR"
UNSPACED_SCRIPTS = frozenset(_SCRIPTS.split())
LONGEST = 4  # letters of a stretch of such a script that is taken for one word
_JOINERS = frozenset("\u200c\u200d")  # ZERO WIDTH NON-JOINER and JOINER
# A Korean noun carries its particles behind it.
_PARTICLE_LIST = """
    이 가 은 는 을 를 의 에 에서 에게 께 한테 로 으로 와 과 랑 이랑 도 만 들 부터 까지 처럼 보다
"""
PARTICLES = frozenset(_PARTICLE_LIST.split())
_PARTICLES = re.compile(f"(?:{'|'.join(sorted(PARTICLES))}){{1,3}}")


class Letter(NamedTuple):
    """A character of a tokenized text, in lower case.

    Attributes:
        char: the character.
        positions: of the tokens that spell it, sorted.
        cut: whether the tokenizer began a new word with it, as after white space.
        begins: whether a word may begin with it. In scripts without spaces every letter may;
            in others only those after a cut; a combining mark never does.
    """

    char: str
    positions: tuple[int, ...]
    cut: bool
    begins: bool


def letters(pieces: Iterable[tuple[str, Sequence[int]]]) -> list[Letter]:
    """Return what tokens spell.

    `pieces` are entries of a vocabulary, such as "star</w>", each with the positions that stand for
    it. A byte-level vocabulary is read as UTF-8, any other as it is.
    """
    found: list[Letter] = []
    run: list[tuple[str, Sequence[int]]] = []

    def flush(ended: bool) -> None:
        for i, (char, positions) in enumerate(_characters(run, ended)):
            begins = not found or _parted(found[-1].char, char, i == 0)
            found.append(Letter(char.lower(), positions, i == 0, begins))
        run.clear()

    for piece, positions in pieces:
        run.append((piece.removesuffix(END_OF_WORD), positions))
        if piece.endswith(END_OF_WORD) or piece == PLACEHOLDER:
            flush(ended=True)
    flush(ended=False)
    return found


def occurrences(text: Sequence[Letter], word: Sequence[Letter]) -> Iterator[range]:
    """Yield where a word or phrase stands in a text, as ranges of its letters.

    It begins and ends where a word may; inside, words are parted at the same places.
    """
    if not word:
        return
    for start in range(len(text) - len(word) + 1):
        end = start + len(word)
        if (
            text[start].begins
            and all(map(_alike, text[start:end], word, range(len(word))))
            and (end == len(text) or text[end].begins or _is_particle(text, end))
        ):
            yield range(start, end)


def split_words(text: Sequence[Letter]) -> list[list[Letter]]:
    """Return the words of a text.

    Scripts without spaces take a dictionary to be cut into words. Here a stretch of one script is a
    word if it has at most `LONGEST` letters or is Katakana, which writes names. A longer one is cut
    wherever no token goes on: into its letters, or what CLIP has a token for.
    """
    stretches = _grouped(text, _goes_on)
    found: list[list[Letter]] = []
    for stretch in stretches:
        whole = script(stretch[0].char) in ("", "KATAKANA") or len(stretch) <= LONGEST
        found += [stretch] if whole else _grouped(stretch, _hangs_together)
    return found


def written(text: Sequence[Letter]) -> str:
    """Return letters as people write them, with blanks where only a blank can have parted them."""
    parts = []
    for i, letter in enumerate(text):
        before = text[i - 1].char if i else ""
        if before and letter.cut and letter.begins and _spaced(before) and _spaced(letter.char):
            parts.append(" ")
        parts.append(letter.char)
    return "".join(parts)


@functools.lru_cache(maxsize=4096)
def script(char: str) -> str:
    """Return the script of a letter if that is one without spaces (`UNSPACED_SCRIPTS`); else ""."""
    if unicodedata.category(char[:1] or " ")[0] not in "LM":
        return ""
    name = unicodedata.name(char[0], "").removeprefix("HALFWIDTH ")
    first = name.replace("IDEOGRAPHIC", "CJK").partition(" ")[0].partition("-")[0]
    return first if first in UNSPACED_SCRIPTS else ""


def is_mark(char: str) -> bool:
    """Whether a character is no part of a word that names something: punctuation or a digit."""
    return char in string.punctuation or unicodedata.category(char)[0] in "PNZ"


def combines(char: str) -> bool:
    """Whether a character never begins a word: a combining mark, or a joiner."""
    return char in _JOINERS or unicodedata.category(char[:1])[0] == "M"


def _grouped(
    text: Sequence[Letter], together: Callable[[Letter, Letter], bool]
) -> list[list[Letter]]:
    groups: list[list[Letter]] = []
    for letter in text:
        if groups and together(groups[-1][-1], letter):
            groups[-1].append(letter)
        else:
            groups.append([letter])
    return groups


def _hangs_together(before: Letter, here: Letter) -> bool:
    """Whether no cut is possible: letters of one word, of one token, or of an embedding's name."""
    return not here.begins or not set(before.positions).isdisjoint(here.positions)


def _goes_on(before: Letter, here: Letter) -> bool:
    """Whether a word, or a stretch of a script without spaces, goes on with a letter."""
    same = script(before.char) == script(here.char) and not _is_symbol(here.char)
    return (same and not here.cut) or _hangs_together(before, here)


def _parted(before: str, here: str, cut: bool) -> bool:
    """Whether a word may end before and another begin here."""
    if combines(here) or before[-1:] in _JOINERS:
        return False
    return cut or bool(script(before) or script(here)) or _is_symbol(here)


def _alike(letter: Letter, wanted: Letter, index: int) -> bool:
    same = letter.char == wanted.char != UNKNOWN
    return same and (index == 0 or letter.begins == wanted.begins)


def _is_particle(text: Sequence[Letter], start: int) -> bool:
    """Whether what is left of a word from here on is no more than its particles."""
    end = next((i for i in range(start, len(text)) if text[i].begins), len(text))
    return bool(_PARTICLES.fullmatch("".join(letter.char for letter in text[start:end])))


def _is_symbol(char: str) -> bool:
    return unicodedata.category(char[-1])[0] in "PS"


def _spaced(char: str) -> bool:
    return char[-1].isalpha() and not script(char)


def _characters(
    run: Sequence[tuple[str, Sequence[int]]], ended: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the characters of what a tokenizer took for one word, and which positions they have.

    One that did not end was cut off, perhaps inside a letter.
    """
    owners: list[list[int]] = []
    silent: list[int] = []  # SentencePiece has tokens that spell nothing before a word
    for piece, positions in run:
        owners += [[*silent, *positions]] * len(piece)
        silent = [] if piece else [*silent, *positions]
    text = "".join(piece for piece, _positions in run)
    if text == UNKNOWN:
        yield text, tuple(owners[0])
        return
    try:
        known = bytes(_BYTES[letter] for letter in text)
        spelled = known.decode(errors="strict" if ended else "ignore")
    except (KeyError, UnicodeDecodeError):  # a vocabulary that is not byte-level
        yield from ((char, tuple(own)) for char, own in zip(text, owners, strict=True))
        return
    start = 0
    for char in spelled:
        end = start + len(char.encode())
        yield char, tuple(sorted({position for own in owners[start:end] for position in own}))
        start = end


def _byte_letters() -> dict[str, int]:
    """Return the letter that byte-level BPE writes for each byte, as GPT-2 introduced it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {**{chr(b): b for b in shown}, **{chr(256 + i): b for i, b in enumerate(hidden)}}


_BYTES = _byte_letters()


def clip_piece(piece: str, following: Sequence[str]) -> str:
    """A SentencePiece piece as CLIP would write it, where a word's end is marked, not its start.

    A word also ends where punctuation or digits begin, and these where letters begin.
    """
    bare = piece.removeprefix(BEGINS_WORD)
    after = following[0] if following else BEGINS_WORD
    if not bare or (bare == "'" and after in _CONTRACTED):
        return bare
    ends = after.startswith(BEGINS_WORD) or is_mark(bare[-1]) != is_mark(after[0])
    return bare + END_OF_WORD if ends else bare

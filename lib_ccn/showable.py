"""Text from outside, made fit to be shown: in a message, a picture's text, a log, on a page.

A character is hidden where nobody sees it, or where it does something to the text around it:
control characters (terminal escapes begin with one), line ends, lone surrogates (which cannot be
encoded), direction marks, zero-width characters and fillers. Those that writing needs in their
place are not: joiners in emoji, in Persian and in Indic scripts, and what chooses an emoji's look.
Only the standard library is imported.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from typing import Any

LENGTH_LIMIT = 400

# Control, format, surrogate, line and paragraph separator.
_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
_SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Without ink, but classed as marks, letters or symbols.
_BLANK = re.compile(
    f"[\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0\ufff0-\ufff8"
    f"\U000e0000-\U000e0fff{_SELECTORS}]"
)
_SELECTOR = re.compile(f"[{_SELECTORS}]")
_TAG = re.compile("[\U000e0020-\U000e007f]")
_FLAG, _KEYCAP, _EMOJI_STYLE = "\U0001f3f4", "\u20e3", "\ufe0f"
_JOINER, _NON_JOINER = "\u200d", "\u200c"
_VIRAMA = 9  # its canonical combining class
_EMOJI = ("So", "Sk", "Sm", "Cn")  # "Cn": newer than this Python

_values = reprlib.Repr()
_values.maxstring = _values.maxother = _values.maxlong = 60
_values.maxlevel = 2


def has_hidden(text: str) -> bool:
    """Whether any character of the text is hidden."""
    return any(_is_hidden(text, place) for place in range(len(text)))


def showable(text: object, limit: int | None = None) -> str:
    """The text with its hidden characters as Python's escapes, such as `\\u202e`.

    What is longer than `limit` characters loses its middle; messages end with what is expected.
    """
    shown = _shortened(str(text), limit)
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(_escaped(shown, place) for place in range(len(shown)))
    return _shortened(shown, limit)


def shown_value(value: object) -> str:
    """A value of any kind as code would write it, on one line, long ones shortened."""
    try:
        text = _values.repr(value)
    except Exception:  # foreign code; and before 3.14 no integer of over 4300 digits is printed
        text = f"<{type(value).__name__}>"
    return showable(re.sub(r"\s*\n\s*", " ", text), LENGTH_LIMIT)


def _shortened(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return f"{text[: limit // 2]} [...] {text[-limit // 2 :]}"


def make_encodable(value: object) -> None:
    """Escape lone surrogates, which no encoding has, in dicts and lists, however nested."""
    waiting: list[Any] = [value]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, (dict, list, tuple)) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, tuple):
            waiting += one
        elif isinstance(one, list):
            one[:] = [_encodable(item) for item in one]
            waiting += one
        else:
            items = [(_encodable(key), _encodable(item)) for key, item in one.items()]
            one.clear()
            one.update(items)
            waiting += one.values()


def _encodable(value: object) -> object:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _escaped(text: str, place: int) -> str:
    one = text[place]
    return one.encode("unicode_escape").decode("ascii") if _is_hidden(text, place) else one


def _is_hidden(text: str, place: int) -> bool:
    one = text[place]
    if " " <= one <= "~":
        return False
    if unicodedata.category(one) not in _CATEGORIES and not _BLANK.match(one):
        return False
    before, after = text[max(place - 1, 0) : place], text[place + 1 : place + 2]
    return not (before and _is_needed(one, before, after))


def _is_needed(one: str, before: str, after: str) -> bool:
    """Whether writing needs it between these two, where `after` may be empty."""
    kind = unicodedata.category(before)
    if _SELECTOR.match(one):
        return after == _KEYCAP or (before > "~" and kind in (*_EMOJI, "Lo", "Po"))
    if _TAG.match(one):
        return before == _FLAG or _TAG.match(before) is not None
    if one not in (_JOINER, _NON_JOINER):
        return False
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if not after:
        return False
    if unicodedata.combining(after) == _VIRAMA:
        return True
    if unicodedata.bidirectional(before) == unicodedata.bidirectional(after) == "AL":
        return True
    pictures = kind in _EMOJI or before == _EMOJI_STYLE
    return one == _JOINER and pictures and unicodedata.category(after) in _EMOJI

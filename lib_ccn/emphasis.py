"""The WebUIs' emphasis syntax: brackets, weights, escapes and BREAK."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

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

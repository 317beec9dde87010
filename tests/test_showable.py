"""What is hidden in a text, what writing needs, and how anything at all is shown."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_ccn.showable import has_hidden, make_encodable, showable, shown_value

HIDDEN = {
    "line end": "\n",
    "carriage return": "\r",
    "tabulator": "\t",
    "NUL": "\0",
    "terminal escape": "\x1b",
    "delete": "\x7f",
    "C1": "\x9b",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "high surrogate": "\ud800",
    "low surrogate": "\udfff",
    "left-to-right mark": "\u200e",
    "right-to-left mark": "\u200f",
    "Arabic letter mark": "\u061c",
    "embedding": "\u202a",
    "override": "\u202e",
    "isolate": "\u2066",
    "end of isolate": "\u2069",
    "zero-width space": "\u200b",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "grapheme joiner": "\u034f",
    "Hangul filler": "\u3164",
    "blank pattern": "\u2800",
    "joiner in Latin": "\u200d",
    "non-joiner in Latin": "\u200c",
    "selector in Latin": "\ufe0f",
    "tag": "\U000e0061",
}

WRITTEN = {
    "Latin": "Ärger, étoile, ﬁ, 42 % @ ~",
    "composed of two": "e\u0301toile",
    "Greek, Cyrillic": "λόγος Ж",
    "ideographs": "赤い星と猫",
    "ideograph with a selector": "葛\U000e0100",
    "Hebrew": "כוכב אדום",
    "Persian": "\u0645\u06cc\u200c\u062e",
    "Hindi": "क्\u200dष नमस्ते",
    "Bengali": "র\u200d্য",
    "Malayalam": "അവന\u0d4d\u200d",
    "Thai": "ดาวสีแดง",
    "woman astronaut": "👩\u200d🚀",
    "with a skin": "👩🏽\u200d🚀",
    "heart on fire": "❤\ufe0f\u200d🔥",
    "keycap": "1\ufe0f\u20e3",
    "flag of England": "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "two letters make a flag": "🇩🇪",
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("around", ["a{}b", "{}a", "a{}", "{}", "a{}猫"])
def test_hidden_characters_are_escaped(name: str, around: str) -> None:
    text = around.format(HIDDEN[name])
    assert has_hidden(text)
    shown = showable(text)
    assert HIDDEN[name] not in shown
    assert "\\" in shown
    assert not has_hidden(shown)
    assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize("name", WRITTEN)
def test_what_writing_needs_stays(name: str) -> None:
    assert not has_hidden(WRITTEN[name])
    assert showable(WRITTEN[name]) == WRITTEN[name]


@given(st.text(st.characters(codec=None)))
def test_anything_is_shown_on_one_line_and_can_be_encoded(text: str) -> None:
    for shown in (showable(text), shown_value(text), shown_value([{text: text}])):
        shown.encode("utf-8")
        assert not has_hidden(shown)
        assert len(f"{shown}.".splitlines()) == 1
        assert not any(unicodedata.bidirectional(c) in ("LRO", "RLO", "LRE", "RLE") for c in shown)


def test_a_long_text_keeps_both_ends() -> None:
    shown = showable("first" + "x" * 10**6 + "last", 100)
    assert shown.startswith("first")
    assert shown.endswith("last")
    assert len(shown) < 120


class Hostile:
    def __init__(self, text: str | None) -> None:
        self.text = text

    def __repr__(self) -> str:
        if self.text is None:
            raise RuntimeError("no")
        return self.text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "None"),
        (0.5, "0.5"),
        ("red", "'red'"),
        ("\x1b[31m", r"'\x1b[31m'"),
        ({"\ud800": "\u202e"}, r"{'\ud800': '\u202e'}"),
        (np.zeros((2, 2), np.uint8), "array([[0, 0], [0, 0]], dtype=uint8)"),
        (Hostile("a\x1bb\n  c"), r"a\x1bb c"),
        pytest.param(10**5000, "<int>", id="5000 digits"),
    ],
)
def test_values_are_shown_as_code_would_write_them(value: object, expected: str) -> None:
    assert shown_value(value) == expected


@pytest.mark.parametrize("value", ["x" * 10**7, [["x"] * 99] * 99, Hostile("y" * 10**6)])
def test_a_long_value_is_shortened(value: object) -> None:
    assert len(shown_value(value)) < 450


def test_a_value_that_cannot_be_shown_is_named() -> None:
    assert "Hostile" in shown_value(Hostile(None))


class TestMakeEncodable:
    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            ({"\ud800x": 1}, {r"\ud800x": 1}),
            ([{"a": ["b\udfff"]}, "\udc00"], [{"a": [r"b\udfff"]}, r"\udc00"]),
            ({"é": "💃", "n": None, "t": (1, 2)}, {"é": "💃", "n": None, "t": (1, 2)}),
        ],
    )
    def test_is_done_in_place(self, given, wanted):
        kept = given
        make_encodable(given)
        assert kept == wanted
        json.dumps(kept, ensure_ascii=False).encode()

    def test_what_holds_itself_comes_to_an_end(self):
        ring = ["\ud800"]
        ring.append(ring)
        make_encodable(ring)
        assert ring[0] == r"\ud800"

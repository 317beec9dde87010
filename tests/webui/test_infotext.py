"""Pasting a picture's text into the page."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_ccn.settings import WORD_LIMIT, Settings, SettingsError, fields
from lib_ccn.showable import has_hidden
from lib_ccn.webui.arguments import PAGE, plain_value, read
from lib_ccn.webui.infotext import PASTED, PasteKey, page_value, pasted

UNITS = st.sampled_from(["auto", 0, 1, 7])
METHOD = st.fixed_dictionaries(
    {
        "fusion": st.sampled_from(fields()["fusion"].choices),
        "delta": st.floats(0, 1),
        "inject": st.booleans(),
        "start_step": st.just("auto") | st.integers(0, 150),
        "foreground_unit": UNITS,
        "background_unit": st.sampled_from(["auto", 2, 3]),
        "foreground_word": st.sampled_from(["", "red fox", "12x34", 'a, "b": c', "100%", "Ärger"]),
        "mask_source": st.sampled_from(fields()["mask_source"].choices),
        "show_mask": st.booleans(),
    }
)


def page_after(pasted_values: dict[str, Any], before: dict[str, Any]) -> list[Any]:
    """The page's values after a paste."""
    return [{**before, **pasted_values}[name] for name in PAGE]


BEFORE = {
    **{name: page_value(name, setting.default) for name, setting in fields().items()},
    "enabled": True,
    "delta": 0.11,
    "foreground_unit": "1: canny",
    "foreground_word": "left over",
    "start_layer": 3,
}


@given(METHOD)
def test_a_picture_made_with_the_method_restores_every_setting(values: dict[str, Any]) -> None:
    settings = Settings(enabled=True, **values)
    assert read(page_after(pasted(settings.to_infotext()), BEFORE)).settings == settings


@pytest.mark.parametrize("params", [{}, {"Steps": "20", "CCN delta": "0.5"}, {"CCN enabled": None}])
def test_a_picture_made_without_it_switches_off_and_no_more(params: dict[str, Any]) -> None:
    assert pasted(params) == {"enabled": False}


def test_the_text_false_is_not_true() -> None:
    assert pasted({"CCN enabled": "False"}) == {"enabled": False}
    assert pasted({"CCN enabled": "True", "CCN injection": "False"})["inject"] is False
    assert pasted({"CCN enabled": "True"})["inject"] is True


def test_what_cannot_be_read_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    params = {
        "CCN enabled": "True",
        "CCN delta": "lots",
        "CCN fusion": "new",
        "CCN start step": "9",
    }
    with caplog.at_level(logging.WARNING):
        values = pasted(params)
    assert "delta" not in values
    assert "fusion" not in values
    assert values["start_step"] == "9"
    assert "delta" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [
        {"CCN delta": "lots"},
        {"CCN delta": "lots", "CCN fusion": "new"},
        {"CCN delta": "\x1b[31m", "CCN start step": "-1", "CCN foreground word": "%00"},
        {"CCN foreground unit": "1", "CCN background unit": "1"},
    ],
)
def test_one_paste_is_one_warning(bad: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    params = {"CCN enabled": "True", "CCN mask threshold": "0.25", **bad}
    # The WebUI calls the key of every control with all that was pasted.
    values = {name: PasteKey(name)(params) for name in PASTED}
    assert values["mask_threshold"] == 0.25
    (record,) = caplog.records
    named = [fields()[n].infotext for n in PASTED if f"({n}) = " in record.getMessage()]
    assert set(named) == {key for key in bad if key != "CCN foreground unit"}
    assert not has_hidden(record.getMessage())
    PasteKey("enabled")(params)
    assert len(caplog.records) == 2, "the same picture pasted again"


def test_a_good_paste_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    for params in ({}, {"CCN enabled": "True", "CCN delta": "0.25"}):
        for name in PASTED:
            PasteKey(name)(params)
    assert not caplog.records


def test_units_that_contradict_each_other_are_left_alone() -> None:
    values = pasted({"CCN enabled": "True", "CCN foreground unit": "1", "CCN background unit": "1"})
    assert values["foreground_unit"] == "1"
    assert "background_unit" not in values


@given(st.dictionaries(st.sampled_from([s.infotext for s in fields().values()]), st.text()))
def test_any_text_is_survived(params: dict[str, str]) -> None:
    values = pasted(params)
    assert set(values) <= set(PASTED)
    assert values.get("enabled", False) in (True, False)


def test_no_image_is_pasted() -> None:
    assert set(PAGE) - set(PASTED) == {"mask_image"}


def test_a_key_is_a_name_for_one_tab_and_a_reader_for_pasting() -> None:
    key = PasteKey("delta")
    assert key == "CCN delta"
    assert key in ["CCN delta"]
    assert {key: 1}["CCN delta"] == 1
    assert key({"CCN enabled": "True", "CCN delta": "0.25"}) == 0.25
    assert key({}) is None
    assert PasteKey("enabled")({}) is False


@given(METHOD)
def test_the_page_holds_every_value_and_gives_it_back(values: dict[str, Any]) -> None:
    for name, value in values.items():
        assert plain_value(name, page_value(name, value)) == value


PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEOS_PAIR = re.compile(r'\s*([\w\s\-\/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def written(params: Mapping[str, str]) -> str:
    """What every WebUI makes of generation parameters: quoted where it would read them apart."""
    quoted = {
        key: json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value
        for key, value in params.items()
    }
    return ", ".join(k if params[k] == k else f"{k}: {value}" for k, value in quoted.items())


def read_back(line: str, pair: re.Pattern[str]) -> dict[str, str]:
    """What a WebUI reads from that line: quotes come off, sizes are split in two."""
    found: dict[str, str] = {}
    for key, value in pair.findall(line):
        if len(value) > 1 and value[0] == value[-1] == '"':
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        size = re.fullmatch(r"(\d+)x(\d+)", value)
        found |= {f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value}
    return found


def through_a_picture(word: str, pair: re.Pattern[str]) -> str:
    """A foreground word after it was written into a picture's text and pasted."""
    ours = Settings(enabled=True, foreground_word=word, strict=True).to_infotext()
    line = written({"Steps": "20", "Sampler": "Euler", **ours, "Version": "v1.10.1"})
    found = read_back(line, pair)
    assert found["Version"] == "v1.10.1"
    assert found["CCN strict"] == "True"
    return Settings.from_infotext(found).foreground_word


WORDS = (
    "red star",
    "red, star",
    "a:b",
    "(star:1.2)",
    '"',
    '""',
    '"star"',
    '"star',
    'star"',
    'the "star", red',
    '"a", "b"',
    '"a: b',
    "12x34",
    "12x34, 5",
    "\u0661x\u0662",
    "50%",
    "%2C",
    "100%25",
    "%",
    "%zz",
    "a\\",
    "a\\, b\\",
    '\\"',
    "CCN foreground word",
    "None",
    "True",
    "Ärger",
    "赤い星、海",
    "{star}",
    "Steps: 20, Seed: 5",
)


@pytest.mark.parametrize("pair", [PAIR, NEOS_PAIR], ids=["others", "Neo"])
class TestWords:
    """A foreground word comes back from a picture's text as it was."""

    @pytest.mark.parametrize("word", WORDS)
    def test_comes_back(self, word: str, pair: re.Pattern[str]) -> None:
        assert through_a_picture(word, pair) == word

    @given(word=st.text(alphabet=st.sampled_from("\",:%\\x12a C'F"), max_size=12))
    def test_comes_back_whatever_is_in_it(self, word: str, pair: re.Pattern[str]) -> None:
        word = " ".join(word.split())
        assert through_a_picture(word, pair) == word

    @given(word=st.text(max_size=WORD_LIMIT))
    def test_comes_back_in_every_script(self, word: str, pair: re.Pattern[str]) -> None:
        try:
            word = Settings(foreground_word=word).foreground_word
        except SettingsError:
            return
        assert through_a_picture(word, pair) == word


@pytest.mark.parametrize(
    "word", ["red, star", "star: red", 'the "star"', 'the "star", red', "50% of it", "100 %", "a%"]
)
def test_a_word_is_written_as_it_is(word: str) -> None:
    """The WebUI quotes what needs quotes, so that people can read it."""
    assert fields()["foreground_word"].to_infotext(word) == word


@pytest.mark.parametrize(
    ("old", "word"),
    [
        ("red%2C star", "red, star"),
        ("a%3Ab", "a:b"),
        ("%22star%22", '"star"'),
        ("100%2525", "100%25"),
        ("50%25", "50%"),
        ("12%7834", "12x34"),
        ("%43CN foreground word", "CCN foreground word"),
    ],
)
def test_texts_of_before_are_still_read(old: str, word: str) -> None:
    params = {"CCN enabled": "True", "CCN foreground word": old}
    assert pasted(params)["foreground_word"] == word

"""Pasting a picture's text into the page."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_ccn.settings import Settings, fields
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

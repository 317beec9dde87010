"""The names in the unit dropdowns."""

from __future__ import annotations

import pytest

from lib_ccn.webui.arguments import named_choice, plain_value, unit_choices

MODELS = ["control_canny [abc]", "None", None, " depth: v2 ", ""]
CHOICES = ["auto", "0: control_canny [abc]", "1", "2", "3: depth: v2", "4"]


def test_units_show_their_models() -> None:
    assert unit_choices(MODELS) == CHOICES
    assert unit_choices([]) == ["auto"]


def test_every_choice_is_read_as_its_number() -> None:
    read = [plain_value("foreground_unit", choice) for choice in CHOICES]
    assert read == ["auto", 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("auto", "auto"),
        ("0", "0: control_canny [abc]"),
        (3, "3: depth: v2"),
        ("0: another model", "0: control_canny [abc]"),
        ("1: a model that is gone", "1"),
        ("9", "9"),
        ("9: gone", "9: gone"),
        (None, "None"),
    ],
)
def test_a_value_follows_its_units_name(value: object, expected: str) -> None:
    assert named_choice(value, CHOICES) == expected


@pytest.mark.parametrize("value", CHOICES)
def test_a_choice_stays_itself(value: str) -> None:
    assert named_choice(value, CHOICES) == value

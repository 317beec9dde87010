"""Settings: what is accepted, what is refused and how, and every way out and back."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import re
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lib_ccn.layers import Layer
from lib_ccn.settings import (
    UNIT_LIMIT,
    VERSION,
    WORD_LIMIT,
    Settings,
    SettingsError,
    fields,
    json_schema,
)
from lib_ccn.showable import has_hidden

IMAGE = base64.b64encode(b"\x89PNG not really a picture").decode()

WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40).filter(
    lambda text: not has_hidden(" ".join(text.split()))
)
VALUES = {
    "flag": lambda s: st.booleans(),
    "number": lambda s: st.floats(s.minimum, s.maximum),
    "integer": lambda s: st.integers(s.minimum, s.maximum),
    "choice": lambda s: st.sampled_from(s.choices),
    "step": lambda s: st.just("auto") | st.integers(s.minimum, s.maximum),
    "unit": lambda s: st.just("auto") | st.integers(s.minimum, s.maximum),
    "text": lambda s: WORDS,
    "image": lambda s: (
        st.none() | st.binary(min_size=1).map(lambda b: base64.b64encode(b).decode())
    ),
    "layers": lambda s: st.lists(
        st.builds(
            Layer,
            unit=st.integers(0, 99),
            word=WORDS.map(lambda text: " ".join(text.split())),
            mask_source=st.sampled_from((None, "word", "all", "image", "silhouette")),
            mask_threshold=st.none() | st.floats(0, 1),
        ),
        max_size=4,
        unique_by=lambda layer: layer.unit,
    ),
}


def one_order(values):
    """Who is in front is said once, and nobody is behind too."""
    background, layers = values.get("background_unit", "auto"), values.get("layers")
    if not layers:
        return background == "auto" or background != values.get("foreground_unit", "auto")
    said = {"foreground_unit", "foreground_word"} & values.keys()
    return not said and background not in [layer.unit for layer in layers]


SETTINGS = (
    st.fixed_dictionaries({}, optional={name: VALUES[s.kind](s) for name, s in fields().items()})
    .filter(one_order)
    .map(lambda values: Settings(**values))
)


def webui_round_trip(params: dict[str, str]) -> dict[str, str]:
    """What a WebUI makes of extra generation params, written to a picture and pasted back.

    Values with comma, colon or newline are quoted as JSON; a value equal to its key loses the
    key; on the way back quoted values are unquoted, and `12x34` becomes two entries.
    """
    parts = ["Steps: 20", "Sampler: Euler", "Seed: 1"]
    for key, value in params.items():
        assert re.fullmatch(r"\w[\w \-/]+", key)
        assert not key.startswith("ControlNet")
        if value == key:
            parts.append(key)
            continue
        quoted = any(c in value for c in ",:\n")
        parts.append(f"{key}: {json.dumps(value, ensure_ascii=False) if quoted else value}")
    line = f"a prompt\n{', '.join(parts)}".strip().split("\n")[-1]
    read: dict[str, str] = {}
    pair = r'\s*(?P<key>\w[\w \-/]+):\s*(?P<value>"(?:[^"\\]|\\.)+"|[^,]*)(?:,|$)'
    for match in re.finditer(pair, line):
        key, value = match["key"], match["value"]
        if value[:1] == value[-1:] == '"':
            try:
                value = json.loads(value)
            except ValueError:
                value = match["value"]
        if re.match(r"^\d+x\d+$", value):
            read[f"{key}-1"], read[f"{key}-2"] = value.split("x")
        else:
            read[key] = value
    return read


def test_names_and_defaults_are_the_published_ones():
    assert dataclasses.asdict(Settings()) == {
        "enabled": False,
        "fusion": "pix+channel",
        "delta": 0.7,
        "inject": True,
        "start_step": "auto",
        "start_layer": 0,
        "foreground_unit": "auto",
        "background_unit": "auto",
        "foreground_word": "",
        "mask_source": "word",
        "mask_threshold": fields()["mask_threshold"].default,
        "mask_reduction": 4,
        "mask_image": None,
        "show_mask": False,
        "layers": (),
        "foreground_gain": 1.0,
        "outside_places": "sum",
        "strict": False,
    }


def test_a_unit_is_not_foreground_and_background_at_once():
    assert Settings(foreground_unit=0, background_unit=1).background_unit == 1
    with pytest.raises(SettingsError, match=r"background_unit = 2 .*another unit than foreground"):
        Settings(foreground_unit=2, background_unit=2)
    with pytest.raises(SettingsError, match="background_unit"):
        Settings(foreground_unit=0).replace(background_unit=0)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("delta", 0, 0.0),
        ("delta", 1, 1.0),
        ("delta", -0.0, 0.0),
        ("delta", np.float32(0.5), 0.5),
        ("delta", np.int64(1), 1.0),
        ("delta", Fraction(1, 2), 0.5),
        ("start_step", 5.0, 5),
        ("start_step", 150, 150),
        ("start_layer", 40, 40),
        ("foreground_unit", 0, 0),
        ("foreground_unit", 2.0, 2),
        ("foreground_unit", UNIT_LIMIT, UNIT_LIMIT),
        ("foreground_word", "  red\n star\t", "red star"),
        ("foreground_word", "étoile 星 ★", "étoile 星 ★"),
        ("foreground_word", "x" * WORD_LIMIT, "x" * WORD_LIMIT),
        ("mask_image", IMAGE, IMAGE),
        ("mask_image", f"data:image/png;base64,{IMAGE}", f"data:image/png;base64,{IMAGE}"),
        ("mask_image", f"{IMAGE[:8]}\n{IMAGE[8:]}\n", IMAGE),
        ("mask_image", None, None),
        *(("fusion", c, c) for c in fields()["fusion"].choices),
        *(("mask_source", c, c) for c in fields()["mask_source"].choices),
    ],
)
def test_accepted_values(name, value, kept):
    for settings in (Settings(**{name: value}), Settings.from_dict({name: value})):
        got = getattr(settings, name)
        assert got == kept
        assert type(got) is type(kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enabled", 1),
        ("enabled", "False"),
        ("enabled", None),
        ("strict", np.bool_(True)),
        ("fusion", "PIX"),
        ("fusion", ["pix"]),
        ("fusion", None),
        ("delta", True),
        ("delta", "0.7"),
        ("delta", None),
        ("delta", float("nan")),
        ("delta", float("inf")),
        ("delta", 1.0000001),
        ("delta", -1e-9),
        ("delta", 10**400),
        ("delta", 1j),
        ("start_step", 5.5),
        ("start_step", False),
        ("start_step", 151),
        ("start_step", -1),
        pytest.param("start_step", 10**5000, id="5000 digits"),
        ("start_layer", 41),
        ("start_layer", float("-inf")),
        ("foreground_unit", "1"),
        ("foreground_unit", -1),
        ("foreground_unit", True),
        ("foreground_unit", UNIT_LIMIT + 1),
        ("foreground_word", None),
        ("foreground_word", b"star"),
        ("foreground_word", "a\x00b"),
        ("foreground_word", "\ud800"),
        ("foreground_word", "x" * (WORD_LIMIT + 1)),
        ("mask_source", ""),
        ("mask_image", ""),
        ("mask_image", "not base64!"),
        ("mask_image", "data:image/png;base64,"),
        ("mask_image", "data:image/png,abcd"),
        ("mask_image", "http://example.org/mask.png"),
        ("mask_image", "é" * 8),
        ("mask_image", b"abcd"),
        ("mask_threshold", 2),
    ],
)
def test_refused_values_name_field_value_and_range(name, value):
    for make in (lambda: Settings(**{name: value}), lambda: Settings.from_dict({name: value})):
        with pytest.raises(SettingsError) as caught:
            make()
        error = caught.value
        assert isinstance(error, ValueError)
        assert error.field == name
        assert error.value is value
        assert error.allowed == fields()[name].allowed
        assert name in str(error)
        assert error.allowed in str(error)
        assert len(str(error)) < 400


def test_messages_show_the_value_and_shorten_a_long_one():
    with pytest.raises(SettingsError, match=r"delta = 2 .*from 0 to 1$"):
        Settings(delta=2)
    with pytest.raises(SettingsError) as caught:
        Settings(mask_image=f"{IMAGE}!" * 10**5)
    assert IMAGE[:16] in str(caught.value)
    assert len(str(caught.value)) < 300


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(SettingsError, match="did you mean delta") as caught:
        Settings.from_dict({"detla": 0.5})
    assert (caught.value.field, caught.value.value) == ("detla", 0.5)
    assert "foreground_word" in caught.value.allowed
    with pytest.raises(SettingsError, match="did you mean start_step"):
        Settings().replace(startstep=3)
    for name in (5, None, ("delta",), "x" * 10**6):
        with pytest.raises(SettingsError) as caught:
            Settings.from_dict({name: 1})
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("mapping", [None, [], [("delta", 0.5)], "delta", 5, {1, 2}])
def test_what_is_no_mapping_is_refused(mapping):
    with pytest.raises(SettingsError, match="mapping"):
        Settings.from_dict(mapping)


def test_any_mapping_will_do_and_is_left_alone():
    values = {"version": VERSION, "delta": 0.5}
    assert Settings.from_dict(MappingProxyType(values)) == Settings(delta=0.5)
    assert values == {"version": VERSION, "delta": 0.5}


def test_presets_of_other_versions(caplog):
    assert Settings().to_dict()["version"] == VERSION
    assert Settings.from_dict({}) == Settings()
    assert Settings.from_dict({"fusion": "pix"}) == Settings(fusion="pix")
    newer = {"version": VERSION + 1, "delta": 0.5, "wavelets": [1, 2]}
    with caplog.at_level(logging.WARNING, "lib_ccn.settings"):
        assert Settings.from_dict(newer) == Settings(delta=0.5)
    assert "wavelets" in caplog.text
    with pytest.raises(SettingsError, match="delta"):
        Settings.from_dict({**newer, "delta": 5})
    with pytest.raises(SettingsError, match="wavelets"):
        Settings.from_dict({**newer, "version": VERSION})
    for version in (0, -1, "1", None, True, 1.5, float("nan")):
        with pytest.raises(SettingsError) as caught:
            Settings.from_dict({"version": version})
        assert caught.value.field == "version"


def test_settings_are_values():
    settings = Settings(delta=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.delta = 0.6
    assert settings.replace(fusion="max") == Settings(delta=0.5, fusion="max")
    assert hash(settings) == hash(Settings(delta=0.5))
    with pytest.raises(SettingsError):
        settings.replace(delta=7)


def test_only_changed():
    assert Settings().to_dict(only_changed=True) == {"version": VERSION}
    changed = Settings(delta=0.5, foreground_unit=0)
    assert changed.to_dict(only_changed=True) == {
        "version": VERSION,
        "delta": 0.5,
        "foreground_unit": 0,
    }


def test_a_mask_image_is_asked_for_at_use_not_before():
    settings = Settings(mask_source="image")
    with pytest.raises(SettingsError) as caught:
        settings.check_usable()
    assert caught.value.field == "mask_image"
    settings.replace(inject=False).check_usable()
    with pytest.raises(SettingsError):
        settings.replace(inject=False, show_mask=True).check_usable()
    settings.replace(mask_image=IMAGE).check_usable()
    Settings().check_usable()


def test_infotext_of_a_typical_picture():
    settings = Settings(enabled=True, delta=0.65, inject=False, foreground_word="red star")
    assert settings.to_infotext() == {
        "CCN enabled": "True",
        "CCN delta": "0.65",
        "CCN injection": "False",
        "CCN start step": "auto",
        "CCN foreground word": "red star",
    }


def test_infotext_is_silent_when_off():
    assert Settings(delta=0.1, foreground_word="star").to_infotext() == {}
    assert Settings.from_infotext({}) == Settings()


def test_infotext_notes_a_mask_image_without_carrying_it():
    plain = Settings(enabled=True, mask_source="image", mask_image=IMAGE)
    prefixed = plain.replace(mask_image=f"data:image/png;base64,{IMAGE}")
    note = plain.to_infotext()["CCN mask image"]
    assert re.fullmatch("[0-9a-f]{10}", note)
    assert prefixed.to_infotext()["CCN mask image"] == note
    assert Settings.from_infotext(plain.to_infotext()) == plain.replace(mask_image=None)


def test_infotext_ignores_what_is_not_ours():
    pasted = {"Steps": "20", "ControlNet 0": "Module: canny", "CCN unknown": "1", "CCN delta": None}
    assert Settings.from_infotext(pasted) == Settings()


@pytest.mark.parametrize("text", ["abc", "", "2", "nan", "0,5"])
def test_infotext_that_cannot_be_read_names_the_setting(text):
    with pytest.raises(SettingsError) as caught:
        Settings.from_infotext({"CCN delta": text})
    assert caught.value.field == "delta"


@pytest.mark.parametrize(("text", "value"), [("False", False), ("false", False), ("True", True)])
def test_a_pasted_false_stays_false(text, value):
    assert Settings.from_infotext({"CCN injection": text}).inject is value


@given(SETTINGS)
@example(Settings(foreground_word="CCN foreground word"))
@example(Settings(foreground_word="512x768"))
@example(Settings(foreground_word='"quoted"'))
@example(Settings(foreground_word='"\\"deeper\\""'))
@example(Settings(foreground_word='a, b: "c" 100%2C \\n None'))
@example(Settings(foreground_word="None"))
@example(Settings(delta=5e-324, mask_threshold=1 / 3))
def test_round_trips(settings):
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings.from_dict(settings.to_dict(only_changed=True)) == settings
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert Settings(**dataclasses.asdict(settings)) == settings
    on = settings.replace(enabled=True)
    texts = on.to_infotext()
    assert all(isinstance(v, str) for v in texts.values())
    for pasted in (texts, webui_round_trip(texts)):
        assert Settings.from_infotext(pasted) == on.replace(mask_image=None)


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from([*fields(), "version"]) | st.text(max_size=12) | st.integers()


def load(make, values) -> Settings | SettingsError:
    try:
        return make(values)
    except SettingsError as error:
        return error


@given(st.dictionaries(NAMES, GARBAGE, max_size=5) | GARBAGE)
def test_garbage_loads_or_is_refused_by_name(garbage):
    result = load(Settings.from_dict, garbage)
    if isinstance(result, Settings):
        assert Settings.from_dict(result.to_dict()) == result
    else:
        assert result.field in str(result)
        assert result.allowed in str(result)


@given(st.dictionaries(st.sampled_from([s.infotext for s in fields().values()]), st.text()))
def test_garbage_infotext_loads_or_is_refused(pasted):
    result = load(Settings.from_infotext, pasted)
    assert isinstance(result, Settings) or result.field in fields()


def test_every_setting_is_described_once():
    described = fields()
    assert list(described) == [f.name for f in dataclasses.fields(Settings)]
    assert len({s.label for s in described.values()}) == len(described)
    assert len({s.infotext for s in described.values()}) == len(described)
    for name, setting in described.items():
        assert setting.help.endswith(".")
        assert setting.accept(name, setting.default) == setting.default


def test_json_schema_describes_every_setting():
    schema = json_schema()
    json.dumps(schema, allow_nan=False)
    properties = schema["properties"]
    assert set(properties) == {"version", *fields()}
    assert schema["additionalProperties"] is False
    for name, setting in fields().items():
        assert properties[name]["default"] == setting.plain(setting.default)
        assert properties[name]["description"] == setting.help
    delta = properties["delta"]
    assert (delta["type"], delta["minimum"], delta["maximum"]) == ("number", 0, 1)
    assert properties["start_step"]["anyOf"][0] == {"const": "auto"}
    assert properties["start_step"]["anyOf"][1]["maximum"] == 150
    assert properties["fusion"]["enum"] == list(fields()["fusion"].choices)
    assert properties["mask_image"]["type"] == ["string", "null"]
    assert {"const": "auto"} in properties["foreground_unit"]["anyOf"]


class TestAutomaticStart:
    """A tenth of the steps; what was saved when the default was 5 keeps its meaning."""

    @pytest.mark.parametrize(
        ("steps", "start"), [(1, 0), (4, 0), (5, 1), (10, 1), (20, 2), (25, 3), (28, 3), (50, 5)]
    )
    def test_is_a_tenth(self, steps, start):
        assert Settings().at_steps(steps).start_step == start

    @pytest.mark.parametrize("start", [0, 5, 150])
    def test_a_number_is_that_step(self, start):
        settings = Settings(start_step=start)
        assert settings.at_steps(20) == settings

    def test_old_settings_without_it_mean_5(self):
        assert Settings.from_dict({"version": 1, "delta": 0.4}).start_step == 5
        assert Settings.from_dict({"version": 1, "start_step": 2}).start_step == 2
        assert Settings.from_dict({"delta": 0.4}).start_step == "auto"

    def test_old_pictures_without_it_mean_5(self):
        assert Settings.from_infotext({"CCN enabled": "True"}).start_step == 5
        assert (
            Settings.from_infotext({"CCN enabled": "True", "CCN start step": "7"}).start_step == 7
        )
        assert Settings.from_infotext({}) == Settings()

    def test_new_pictures_always_say_it(self):
        for start in ("auto", 5, 9):
            text = Settings(enabled=True, start_step=start).to_infotext()
            assert text["CCN start step"] == str(start)
            assert Settings.from_infotext(text).start_step == start

"""The setting `layers`: a list of entries or a text, and what it does to the others."""

import base64
import json

import pytest

from lib_ccn.layers import LAYER_LIMIT, Layer
from lib_ccn.settings import Settings, SettingsError, fields, json_schema

IMAGE = base64.b64encode(b"\x89PNG not really a picture").decode()


def test_a_list_and_its_text_are_the_same():
    entries = [
        {"unit": 1, "word": "dancer"},
        {"unit": 0, "word": "red horse", "mask_source": "silhouette", "mask_threshold": 0.4},
        {"unit": 2},
    ]
    settings = Settings.from_dict({"layers": entries})
    text = "1 dancer, 0 red horse (silhouette, threshold 0.4), 2"
    assert settings == Settings(layers=text)
    assert fields()["layers"].to_infotext(settings.layers) == text
    assert settings.to_dict(only_changed=True)["layers"] == entries
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("word", ["a, (b) 100%", "50%2C", "ein Hund", "(", "dog (silhouette)", "0"])
def test_a_word_is_written_so_that_it_can_be_read(word):
    settings = Settings(enabled=True, layers=[{"unit": 0, "word": word}, {"unit": 3}])
    assert Settings.from_infotext(settings.to_infotext()) == settings


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("x", "'x' is refused: expected text such as"),
        ("0 a,, 1 b", "expected text such as"),
        ("0 a, 0 b", "each unit only once"),
        (
            "0 a (somewhere)",
            r"'somewhere' is refused as mask_source of its entry 0: .*'silhouette'",
        ),
        ("0 a (threshold x)", "a number behind 'threshold'"),
        ("1000 a", "expected text such as"),
        ([{"word": "a"}], "as its entry 0: expected a list of at most"),
        ([{"unit": None, "word": "a"}], "as its entry 0: expected a list of at most"),
        ([{"unit": 0}, {"unit": 100}], "100 is refused as unit of its entry 1: .* 0 to 99"),
        ([{"unit": "0"}], "'0' is refused as unit of its entry 0"),
        ([{"unit": True}], "True is refused as unit"),
        ([{"unit": 0, "wrd": "a"}], "as its entry 0: 'wrd': expected an entry with unit, word"),
        ([{"unit": 0, "mask_threshold": 7}], "mask_threshold of its entry 0: .* a number from 0"),
        ([{"unit": 0, "mask_image": "!"}], "mask_image of its entry 0: .* base64"),
        ([{"unit": 0, "word": "a" * 201}], "word of its entry 0: .* 200 characters"),
        ({"unit": 0}, "expected a list"),
        ([7], "7 is refused as its entry 0"),
        ([{"unit": n} for n in range(LAYER_LIMIT + 1)], "at most 10 entries"),
        (7, "expected a list"),
    ],
)
def test_what_is_wrong_is_named(layers, said):
    with pytest.raises(SettingsError, match=f"setting layers = .*{said}") as caught:
        Settings.from_dict({"layers": layers})
    assert caught.value.field == "layers"
    readable, errors = Settings.from_readable({"layers": layers, "delta": 0.5})
    assert (readable, len(errors)) == (Settings(delta=0.5), 1)


def test_who_is_in_front_is_said_once():
    layers = "1 dancer, 0 horse"
    assert Settings(layers=layers, foreground_unit=1, foreground_word="dancer").layers
    for name, value in (("foreground_unit", 0), ("foreground_word", "horse")):
        with pytest.raises(SettingsError, match=f"{name} = .* as layers says who is in front"):
            Settings(layers=layers, **{name: value})
    with pytest.raises(SettingsError, match=r"background_unit = 0 .* another unit than layers"):
        Settings(layers=layers, background_unit=0)


def test_one_unit_in_front_is_a_list_of_one():
    settings = Settings(foreground_unit=2, foreground_word="star", mask_threshold=0.4)
    assert settings.layers_in_front == (Layer(2, "star", "word", 0.4),)
    assert Settings().layers_in_front == (Layer("auto", "", "word", 0.65),)


def test_what_an_entry_does_not_say_is_as_for_all():
    settings = Settings(
        layers=[{"unit": 0, "word": "a"}, {"unit": 1, "mask_source": "image", "mask_image": IMAGE}],
        mask_threshold=0.3,
    )
    assert settings.layers_in_front == (
        Layer(0, "a", "word", 0.3),
        Layer(1, "", "image", 0.3, IMAGE),
    )
    assert settings.given_words == ("a",)
    everywhere = Settings(layers="0 a, 1", mask_source="all")
    assert [layer.mask_source for layer in everywhere.layers_in_front] == ["word", "all"]


def test_an_image_is_missed_by_whom_it_concerns():
    layers = [{"unit": 0, "mask_source": "image"}, {"unit": 1, "word": "a"}]
    settings = Settings(layers=layers)
    with pytest.raises(SettingsError, match="mask_image"):
        settings.check_usable()
    settings.replace(mask_image=IMAGE).check_usable()
    settings.replace(inject=False).check_usable()
    with pytest.raises(SettingsError, match="mask_image"):
        settings.replace(inject=False, fusion="layers").check_usable()


def test_the_schema_says_both_forms():
    schema = json_schema()["properties"]["layers"]
    entries, text = schema["anyOf"]
    assert (schema["default"], text["type"]) == ([], "string")
    assert entries["items"]["required"] == ["unit"]
    assert entries["items"]["properties"]["mask_source"]["enum"][0] == "word"

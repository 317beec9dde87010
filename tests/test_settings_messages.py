"""What is said of a refused setting: fit to be shown, and in words that its reader knows."""

from __future__ import annotations

import pytest

from lib_ccn.settings import VERSION, Settings, SettingsError, fields, page_message
from lib_ccn.showable import has_hidden

OUTSIDE = {
    "surrogate": "\ud800x",
    "terminal escape": "\x1b[2J\x1b[31mred",
    "C1": "\x9b31mred",
    "bell and NUL": "a\x07\x00b",
    "line ends": "a\nb\r\nc\u2028d\x85e",
    "direction": "\u202eder\u202c \u2066x\u2069 \u200f",
    "invisible": "de\u200blta\ufeff",
    "long": "\x1b" * 10**6,
}
NUMBERS = [name for name, s in fields().items() if s.kind in ("number", "integer", "step", "unit")]
FLAGS = [name for name, s in fields().items() if s.kind == "flag"]


def refusal(values: dict) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        Settings.from_dict(values)
    return caught.value


def check(error: SettingsError) -> None:
    for said in (str(error), page_message(error), error.field):
        assert not has_hidden(said)
        assert len(said) < 1000
        said.encode("utf-8")


@pytest.mark.parametrize("text", OUTSIDE.values(), ids=OUTSIDE)
class TestFromOutside:
    def test_names(self, text):
        for name in (text, (text,), frozenset([text]), f"delta{text}"):
            check(refusal({name: 1}))

    def test_values(self, text):
        for name in fields():
            for value in ([text], {text: {text: text}}, text.encode("utf-8", "replace")):
                check(refusal({name: value}))
            if fields()[name].kind != "text":
                check(refusal({name: text}))

    def test_what_is_no_mapping(self, text):
        check(refusal(text))

    def test_words_of_others(self, text):
        check(SettingsError("mask_image", None, f"an image ({text})", f" ({text})"))

    def test_changes(self, text):
        with pytest.raises(SettingsError) as caught:
            Settings().replace(**{text: 1})
        check(caught.value)

    def test_infotext(self, text):
        for name in ("delta", "fusion", "foreground_unit", "show_mask"):
            with pytest.raises(SettingsError) as caught:
                Settings.from_infotext({fields()[name].infotext: text})
            check(caught.value)


def test_values_whose_own_words_are_hostile():
    class Value:
        def __repr__(self):
            return "\ud800\n\x1b[31m"

    check(refusal({"delta": Value()}))
    check(refusal({Value(): 1}))


@pytest.mark.parametrize(
    "mark", ["\u200e", "\u202e", "\u2066", "\u200b", "\u2060", "\ufeff", "\u00ad"]
)
def test_words_have_no_invisible_characters(mark):
    for word in (f"st{mark}ar", f"{mark}star", f"star{mark}"):
        error = refusal({"foreground_word": word})
        assert error.field == "foreground_word"
        assert "visible text" in str(error)
        assert ascii(mark)[1:-1] in str(error)


@pytest.mark.parametrize("word", ["👩\u200d🚀", "❤\ufe0f", "\u0645\u06cc\u200c\u062e", "क्\u200dष"])
def test_words_may_be_written_as_their_script_needs(word):
    assert Settings(foreground_word=word).foreground_word == word


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", " 2 ", "0.7", "1e3", "-5", "007"])
def test_a_number_as_text_is_refused_as_text(name, value):
    error = refusal({name: value})
    assert "a number is wanted here, not text" in str(error)
    assert fields()[name].allowed in str(error)
    assert "not text" in page_message(error)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["true", "True", "FALSE", " false "])
def test_a_flag_as_text_is_refused_as_text(name, value):
    assert "true or false is wanted here, not text" in str(refusal({name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("delta", "much"),
        ("delta", 2),
        ("inject", "on"),
        ("inject", 1),
        ("foreground_unit", "first"),
    ],
)
def test_another_mistake_has_no_such_hint(name, value):
    assert "not text" not in str(refusal({name: value}))


@pytest.mark.parametrize("name", fields())
def test_the_page_reads_its_labels_and_the_api_its_names(name):
    wrong = {"image": "no base64!", "layers": 7}.get(fields()[name].kind, [])
    said = page_message(refusal({name: wrong}))
    shown = repr(wrong)
    assert said.startswith(f"{fields()[name].label} ({name}) = {shown} is refused")
    assert said.endswith(f"expected {fields()[name].allowed}")


def test_other_settings_in_a_message_have_their_labels_too():
    error = refusal({"foreground_unit": 1, "background_unit": 1})
    assert page_message(error) == (
        "Background unit (background_unit) = 1 is refused: "
        "expected another unit than Foreground unit (foreground_unit)"
    )


def test_what_the_page_does_not_know_keeps_its_name():
    for values in ({"detla": 1}, {"version": 0}):
        error = refusal(values)
        assert page_message(error) == str(error)


class TestReadable:
    """`Settings.from_readable`: what can be used of plain values."""

    def test_all(self):
        settings, errors = Settings.from_readable({"delta": 0.5, "fusion": "max"})
        assert (settings, errors) == (Settings(delta=0.5, fusion="max"), [])

    @pytest.mark.parametrize("name", fields())
    def test_one_refused(self, name):
        good = {"delta": 0.5, "start_step": 3, "foreground_word": "fox"}
        settings, errors = Settings.from_readable({**good, name: [object()]})
        kept = {k: v for k, v in good.items() if k != name}
        assert settings == Settings(**kept)
        assert [error.field for error in errors] == [name]

    def test_all_refused(self):
        settings, errors = Settings.from_readable({name: [1] for name in fields()})
        assert settings == Settings()
        assert {error.field for error in errors} == set(fields())

    @pytest.mark.parametrize("name", [5, None, ("a",), "\ud800", "x" * 10**5, "Delta"])
    def test_unknown_names(self, name):
        settings, errors = Settings.from_readable({name: 1, "delta": 0.5, "other": 2})
        assert settings == Settings(delta=0.5)
        assert len(errors) == 1

    def test_a_newer_version_warns_once(self, caplog):
        given = {
            "version": VERSION + 1,
            "wavelets": 1,
            "delta": 9,
            "start_step": -1,
            "fusion": "max",
        }
        settings, errors = Settings.from_readable(given)
        assert settings == Settings(fusion="max")
        assert len(errors) == 2
        assert len(caplog.records) == 1

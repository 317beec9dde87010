"""What the page, the API and X/Y/Z send: what is read of it, and how it is refused."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from lib_ccn.settings import Settings, SettingsError, fields, page_message
from lib_ccn.showable import showable
from lib_ccn.webui.arguments import PAGE, Request, plain_value, read, without_pictures
from lib_ccn.webui.infotext import page_value

OFF = Settings()


class Shelf:
    """A preset store of one preset."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def load(self, name: str) -> Mapping[str, Any]:
        if name != "mine":
            raise KeyError(f"no preset {name!r}")
        return self.values


def png(mode: str = "L", colour: Any = 255, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


WHITE = png("RGBA", (255, 255, 255, 255))


def decoded(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def page(**changes: Any) -> list[Any]:
    """The page's values, switched on."""
    values = {name: page_value(name, fields()[name].default) for name in PAGE}
    values.update({"enabled": True, **changes})
    return [values[name] for name in PAGE]


def refused(request: Request, field: str) -> None:
    """It is named as the page and as the API name it, and takes its default."""
    known = fields().get(field)
    assert request.problem is not None
    name = f"setting {field}" if known is None else f"{known.label} ({field})"
    assert request.problem.startswith(f"{name} = ")
    assert field in request.refused
    assert known is None or getattr(request.settings, field) == known.default


def test_order_of_the_page() -> None:
    rows = (
        "enabled fusion delta inject start_step start_layer",
        "foreground_unit background_unit foreground_word",
        "mask_source mask_threshold mask_reduction mask_image show_mask",
        "layers foreground_gain outside_places",
    )
    assert list(PAGE) == " ".join(rows).split()


# Positional arguments


def test_values_come_in_the_order_of_the_page() -> None:
    image = base64.b64encode(b"picture").decode()
    given = [True, "pix", 0.4, False, 7, 2, 1, 0, "red fox", "image", 0.5, 2, image, True]
    assert PAGE[len(given) :] == ("layers", "foreground_gain", "outside_places"), (
        "new ones come last"
    )
    expected = dict(zip(PAGE, given, strict=False))
    assert read(given) == Request(Settings(**expected))


def test_the_pages_defaults_are_the_settings_defaults() -> None:
    assert read(page()) == Request(Settings(enabled=True))


def test_missing_and_none_take_the_default_and_surplus_is_ignored() -> None:
    assert read([True, "max"]).settings == Settings(enabled=True, fusion="max")
    assert read([True, None, 0.3]).settings == Settings(enabled=True, delta=0.3)
    assert read([*page(delta=0.1), "surplus", {}]).settings == Settings(enabled=True, delta=0.1)


@pytest.mark.parametrize("args", [[], (), [None], [False], [None] * 14, [False, "nonsense", 99]])
def test_off_is_off_whatever_follows(args: list[Any]) -> None:
    assert read(args) == Request(OFF)


def test_numbers_may_be_floats_and_integers() -> None:
    request = read(page(delta=1, start_step=7.0, start_layer=np.int64(3), mask_reduction=2.0))
    assert request.settings == Settings(
        enabled=True, delta=1.0, start_step=7, start_layer=3, mask_reduction=2
    )


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("auto", "auto"),
        ("1", 1),
        (1, 1),
        (1.0, 1),
        ("2: control_v11p [abc]", 2),
        ("0:", 0),
        ("1: two\nlines: here", 1),
    ],
)
def test_a_unit_may_come_with_its_models_name(given_value: Any, expected: Any) -> None:
    assert plain_value("foreground_unit", given_value) == expected
    assert read(page(foreground_unit=given_value)).settings.foreground_unit == expected


@pytest.mark.parametrize(
    "wrong", ["first", "1 canny", "-1", "1.5", "", ": 1", "100", "٣", 1.5, True]
)
def test_other_units_are_refused(wrong: Any) -> None:
    refused(read(page(background_unit=wrong)), "background_unit")


WRONG = {
    "flag": ["True", 1, 0.0, [], {}],
    "number": ["0.5", True, float("nan"), 1e400, -0.1, [0.5]],
    "integer": ["5", 5.5, True, 10**400, float("inf"), -1],
    "choice": ["", "PIX", 0, True, ["pix"], {"pix": 1}],
    "step": ["both", True, 1.5, -1, ["auto"]],
    "unit": ["both", True, 1.5, ["auto"]],
    "text": [5, True, ["fox"], "nul\0", "x" * 10_000, "\ud800"],
    "layers": [7, "x", [{"word": "a"}], {"unit": 0}, [0], "0 a, 0 b"],
    "image": [5, True, "not base64!", ["a"], {"image": "x"}, b"bytes"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n in PAGE if n != "enabled" for v in WRONG[fields()[n].kind]]
)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: Any) -> None:
    refused(read(page(**{name: value})), name)
    refused(read([{name: value}]), name)


@pytest.mark.parametrize("value", ["True", 1, 0, [], "txt2img"])
def test_a_wrong_first_value_is_refused(value: Any) -> None:
    refused(read([value]), "enabled")


def test_one_unit_cannot_be_both() -> None:
    refused(read(page(foreground_unit="1: a", background_unit="1: a")), "background_unit")


# Named settings


def test_a_dict_is_on_unless_it_says_off() -> None:
    assert read([{}]).settings == Settings(enabled=True)
    assert read([{"delta": 0.2}]).settings == Settings(enabled=True, delta=0.2)
    assert read([{"delta": 0.2, "enabled": False}]).settings == Settings(delta=0.2)


def test_what_follows_a_dict_is_ignored() -> None:
    assert read([{"fusion": "max"}, *page(fusion="pix")[1:]]).settings.fusion == "max"


@pytest.mark.parametrize("name", ["Delta", "deltas", "", "args", "preset_name", 5, None, ()])
def test_unknown_names_are_refused(name: Any) -> None:
    request = read([{name: 1, "delta": 0.2}])
    assert request.settings == Settings(enabled=True, delta=0.2)
    assert request.problem is not None
    assert str(name) in request.problem


def test_a_dict_that_is_off_is_checked_too() -> None:
    refused(read([{"enabled": False, "delta": 5}]), "delta")


@pytest.mark.parametrize("strict", [True, False])
def test_strict_holds_for_good_and_bad_settings(strict: bool) -> None:
    assert read([{"strict": strict}]).strict is strict
    bad = read([{"strict": strict, "delta": "much"}])
    refused(bad, "delta")
    assert bad.strict is strict


@pytest.mark.parametrize("strict", ["true", 1, [], {}])
def test_strict_must_be_a_flag(strict: Any) -> None:
    request = read([{"strict": strict}])
    refused(request, "strict")
    assert request.strict is False


# Presets


def test_a_presets_values_stand_under_the_dicts_own() -> None:
    shelf = Shelf(fusion="pix", delta=0.3)
    assert read([{"preset": "mine", "delta": 0.5}], None, shelf).settings == Settings(
        enabled=True, fusion="pix", delta=0.5
    )


@pytest.mark.parametrize(
    ("preset", "own"),
    [
        ({"layers": [{"unit": 1, "word": "fox"}, {"unit": 0}]}, {"foreground_word": "star"}),
        ({"layers": "1 fox, 0"}, {"foreground_unit": 0}),
        ({"foreground_unit": 0, "foreground_word": "star"}, {"layers": "1 fox, 0"}),
    ],
)
def test_the_dicts_own_way_to_say_who_is_in_front_takes_back_the_presets(
    preset: Any, own: Any
) -> None:
    request = read([{"preset": "mine", **own}], None, Shelf(**preset))
    assert request.problem is None
    assert request.settings == Settings(enabled=True, **own)


def test_an_axis_of_layers_takes_back_the_pages_word() -> None:
    page = [fields()[name].default for name in PAGE]
    page[PAGE.index("foreground_word")] = "star"
    layers = fields()["layers"].accept("layers", "1 fox, 0")
    request = read(page, {"layers": layers})
    assert request.problem is None
    assert request.settings == Settings(enabled=True, layers=layers)


def test_a_preset_does_not_switch_on_what_is_off() -> None:
    assert not read([{"preset": "mine", "enabled": False}], None, Shelf()).settings.enabled


def test_no_preset_is_no_preset() -> None:
    assert read([{"preset": None}], None, Shelf(delta=0.3)).settings == Settings(enabled=True)


@pytest.mark.parametrize("name", ["other", "", 5, True, ["mine"], {}, "../mine"])
def test_a_preset_that_is_not_there_is_refused(name: Any) -> None:
    refused(read([{"preset": name}], None, Shelf()), "preset")


def test_a_preset_with_wrong_values_is_refused_by_field() -> None:
    refused(read([{"preset": "mine"}], None, Shelf(delta=9)), "delta")


# What is read beside a refused setting

GOOD = {"fusion": "max", "start_step": 7, "foreground_word": "red fox"}
GOOD_TEXT = {"CCN fusion": "max", "CCN start step": "7", "CCN foreground word": "red fox"}


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"delta": 5}, "delta"),
        ({"delta": "0.5", "inject": "true", "mask_source": 1}, "mask_source"),
        ({"detla": 0.5}, "detla"),
        ({5: 1, None: 2, "\ud800": 3}, "5"),
        ({"version": "one"}, "version"),
        ({"preset": "not there"}, "preset"),
        ({"mask_source": "image", "mask_image": np.ones((4, 4))}, "mask_image"),
        ({"strict": "yes"}, "strict"),
        ({"foreground_unit": 1, "background_unit": 1}, "background_unit"),
    ],
)
def test_the_other_settings_are_read_and_written(bad: dict[Any, Any], name: str) -> None:
    request = read([{**bad, **GOOD}], None, Shelf())
    assert name in str(request.problem)
    texts = request.to_infotext()
    assert texts.items() >= {"CCN enabled": "True", **GOOD_TEXT}.items()
    pasted = Settings.from_infotext(texts)
    assert pasted == request.settings.replace(mask_image=None)


def test_every_refused_setting_is_named() -> None:
    problem = str(read([{"delta": 5, "start_step": -1, "inject": "no"}]).problem)
    assert all(name in problem for name in ("(delta)", "(start_step)", "(inject)"))


@pytest.mark.parametrize("given_", [[{"enabled": "yes", **GOOD}], page(enabled="yes", **GOOD)])
def test_where_it_is_not_sure_that_it_was_wanted_the_text_does_not_say_so(given_: Any) -> None:
    request = read(given_)
    refused(request, "enabled")
    assert request.to_infotext() == GOOD_TEXT


def test_nothing_is_written_where_it_was_switched_off() -> None:
    assert read([{"enabled": False, "delta": 5, **GOOD}]).to_infotext() == {}


def test_a_missing_mask_image_is_told_by_the_page_s_names() -> None:
    request = read([{"mask_source": "image"}])
    with pytest.raises(SettingsError) as caught:
        request.settings.check_usable()
    said = page_message(caught.value)
    assert said.startswith("Mask image (mask_image) is missing: expected an image")
    assert said.endswith("Foreground mask from (mask_source) is 'image'")
    assert "None" not in said


# X/Y/Z


def test_axes_win_and_switch_on() -> None:
    assert read([False], {"delta": 0.2}).settings == Settings(enabled=True, delta=0.2)
    assert read(page(delta=0.9), {"delta": 0.2}).settings.delta == 0.2
    named = read([{"delta": 0.9, "fusion": "max", "enabled": False}], {"delta": 0.2})
    assert named.settings == Settings(enabled=True, delta=0.2, fusion="max")


def test_an_axis_may_switch_off() -> None:
    assert not read(page(), {"enabled": False}).settings.enabled


@pytest.mark.parametrize("axes", [None, {}])
def test_no_axes_change_nothing(axes: Any) -> None:
    assert read([False], axes) == Request(OFF)


def test_a_wrong_axis_is_refused() -> None:
    refused(read(page(), {"delta": "0.5"}), "delta")
    assert "deltas" in str(read(page(), {"deltas": 1}).problem)


# The mask image


def mask_of(value: Any) -> Image.Image:
    request = read(page(mask_source="image", mask_image=value))
    assert request.problem is None
    return decoded(request.settings.mask_image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "YCbCr"])
def test_a_pil_image_of_any_mode(mode: str) -> None:
    assert mask_of(png().convert(mode)).size == (8, 8)


def test_alpha_is_kept() -> None:
    picture = png("RGBA", (255, 255, 255, 0))
    picture.putpixel((1, 1), (255, 255, 255, 255))
    assert mask_of(picture).getchannel("A").getpixel((1, 1)) == 255
    assert mask_of(picture).getchannel("A").getpixel((0, 0)) == 0


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_an_array(shape: tuple[int, ...], dtype: Any) -> None:
    picture = np.ones(shape, dtype) * (1 if dtype is np.bool_ else 255)
    assert mask_of(picture.astype(dtype)).convert("L").getextrema() == (255, 255)
    assert mask_of(picture.astype(dtype)).size == (6, 4)


@pytest.mark.parametrize(
    "array",
    [np.ones((4, 4)), np.ones((4, 4, 2, 2), np.uint8), np.ones((0, 0), np.uint8), np.uint8([1])],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    refused(read(page(mask_source="image", mask_image=array)), "mask_image")


def test_base64_goes_through_and_nothing_is_nothing() -> None:
    text = base64.b64encode(b"picture").decode()
    url = f"data:image/png;base64,{text}"
    for value in (text, url):
        assert read(page(mask_image=value)).settings.mask_image == value
    for nothing in (None, ""):
        assert read(page(mask_source="image", mask_image=nothing)).settings.mask_image is None
        assert read([{"mask_image": nothing}]).settings.mask_image is None


def test_a_picture_left_on_the_page_takes_no_part_unless_asked_for() -> None:
    for value in (png(), {"image": png(), "mask": png()}, np.ones((2, 2), np.uint8)):
        assert read(page(mask_source="word", mask_image=value)).settings.mask_image is None
    assert read(page(mask_image=png()), {"mask_source": "image"}).settings.mask_image is not None


def strokes(mode: str) -> Image.Image:
    """One stroke at (2, 3), on black or on nothing."""
    picture = png(mode, 0 if mode == "L" else (0, 0, 0, 0)[: len(mode)])
    # A dark colour: in an editor's layer it is the covering that counts.
    picture.putpixel((2, 3), (9, 9, 9, 255) if mode == "RGBA" else (255, 255, 255))
    return picture


EDITORS = [
    lambda strokes_, picture: {"image": picture, "mask": strokes_("RGB")},
    lambda strokes_, picture: {
        "background": picture,
        "layers": [strokes_("RGBA")],
        "composite": picture,
    },
]


def test_strokes_may_come_after_the_page() -> None:
    for picture in (png(), None):
        args = [*page(mask_source="image", mask_image=picture), strokes("RGBA")]
        mask = np.asarray(decoded(read(args).settings.mask_image))
        assert np.argwhere(mask).tolist() == [[3, 2]]
    args = [*page(mask_source="image"), png("RGBA", (0, 0, 0, 0))]
    assert read(args) == Request(Settings(enabled=True, mask_source="image"))
    sent = base64.b64encode(b"picture").decode()
    args = [*page(mask_source="image", mask_image=sent), strokes("RGBA")]
    assert read(args).settings.mask_image == sent


@pytest.mark.parametrize("editor", EDITORS, ids=["gradio 3", "gradio 4"])
def test_strokes_win_over_the_picture(editor: Any) -> None:
    mask = np.asarray(mask_of(editor(strokes, png())))
    expected = np.zeros((8, 8), np.uint8)
    expected[3, 2] = 255
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("editor", EDITORS, ids=["gradio 3", "gradio 4"])
def test_without_strokes_the_picture_is_the_mask(editor: Any) -> None:
    picture = strokes("RGB")

    def none(mode: str) -> Image.Image:
        return png(mode, 0 if mode == "L" else (0, 0, 0, 0)[: len(mode)])

    np.testing.assert_array_equal(np.asarray(mask_of(editor(none, picture))), np.asarray(picture))


@pytest.mark.parametrize(
    "untouched",
    [
        {"background": None, "layers": [], "composite": None},
        {"background": None, "layers": None, "composite": None},
        {
            "background": png("RGBA", (0, 0, 0, 0)),
            "layers": [png("RGBA", (0, 0, 0, 0))],
            "composite": png("RGBA", (0, 0, 0, 0)),
        },
        {"image": None, "mask": None},
    ],
)
def test_an_untouched_editor_holds_no_mask(untouched: Any) -> None:
    request = read(page(mask_source="image", mask_image=untouched))
    assert request == Request(Settings(enabled=True, mask_source="image"))


@pytest.mark.parametrize(
    "junk",
    [
        {"image": "text", "mask": 5},
        {"background": 1, "layers": 2, "composite": 3},
        {"background": png(), "layers": [None, "x"], "composite": png()},
        {"background": png(), "layers": [WHITE, WHITE.resize((3, 3))], "composite": png()},
    ],
)
def test_an_editor_with_junk_is_refused(junk: Any) -> None:
    refused(read(page(mask_source="image", mask_image=junk)), "mask_image")


@pytest.mark.parametrize(
    ("picture", "more"),
    [
        (WHITE, []),
        (strokes("RGB"), [strokes("RGBA")]),
        (None, [strokes("RGBA")]),
        *((editor(strokes, png()), []) for editor in EDITORS),
        (np.ones((2, 2), np.uint8) * 255, []),
    ],
)
@pytest.mark.parametrize("source", ["image", "word"])
def test_pictures_become_text_that_another_machine_understands(
    picture: Any, more: list[Any], source: str
) -> None:
    args = [*page(mask_source=source, mask_image=picture), *more]
    plain = without_pictures(args)
    assert plain is not None
    assert len(plain) == len(args)
    assert read(json.loads(json.dumps(plain))) == read(args)


@pytest.mark.parametrize("args", [[], page(), [{"mask_image": "text"}], page(mask_image="text")])
def test_arguments_without_a_picture_stay(args: list[Any]) -> None:
    assert without_pictures(args) is None


def test_a_picture_that_cannot_be_read_stays_for_the_refusal() -> None:
    junk = {"background": 1, "layers": 2, "composite": 3}
    assert without_pictures(page(mask_source="image", mask_image=junk)) is None


# Whatever is given

KEYS = st.sampled_from([*fields(), "preset", "version", "args"]) | st.text(max_size=5)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=10)
    | st.complex_numbers()
    | st.sampled_from([*(c for s in fields().values() for c in s.choices), "auto", "1: a"])
    | st.builds(lambda n: np.zeros((n, 2), np.uint8), st.integers(0, 3))
)
JUNK = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5) | st.tuples(inner)
    ),
    max_leaves=12,
)
SELF: dict[str, Any] = {}
SELF.update(mask_image=SELF, preset=SELF)


class Hostile(Mapping):  # type: ignore[type-arg]
    """A mapping that breaks whoever looks inside."""

    def __getitem__(self, key: object) -> Any:
        raise RuntimeError("no")

    def __iter__(self) -> Any:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(st.lists(JUNK, max_size=18) | JUNK, st.none() | st.dictionaries(KEYS, JUNK, max_size=3))
@example([{"delta": "x" * 10_000_000}], None)
@example([SELF], None)
@example(5, None)
@example([{"mask_image": "A" * 50_000_000}], None)
def test_nothing_raises(args: Any, axes: Any) -> None:
    survived(read(args, axes, Shelf(delta=0.2)))


@pytest.mark.parametrize(
    ("args", "axes"),
    [
        ([Hostile()], None),
        ([True, *[Hostile()] * 13], None),
        (None, {"delta": Hostile()}),
        ([True], Hostile()),
        ([{"preset": "mine", "delta": Hostile()}], None),
    ],
)
def test_hostile_objects_do_not_raise(args: Any, axes: Any) -> None:
    request = read(args, axes, Shelf(delta=0.2))
    survived(request)
    assert request.problem is not None


def survived(request: Request) -> None:
    assert isinstance(request.settings, Settings)
    if request.problem is not None:
        assert 0 < len(request.problem) < 1000
        assert showable(request.problem) == request.problem
    for text in request.to_infotext().values():
        assert showable(text) == text


def test_a_number_too_long_to_print_is_refused() -> None:
    refused(read([{"delta": 10**5000}]), "delta")
    refused(read([True, None, 10**5000]), "delta")


def test_the_unforeseen_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        request = read([Hostile()])
    assert request.settings == OFF
    assert request.problem == "the settings could not be read (RuntimeError)"
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("wrong", [{"\ud800x": 1}, {"preset": "\udfff"}, {"delta": ["\ud800"]}])
def test_a_request_can_be_sent_back_in_the_answer(wrong):
    """The WebUIs do that, with whatever was in it."""
    args = [dict(wrong)]
    problem = read(args, presets=SimpleNamespace(load=lambda name: 1 / 0)).problem
    assert r"\ud" in problem
    for text in (problem, json.dumps(args, ensure_ascii=False)):
        text.encode()

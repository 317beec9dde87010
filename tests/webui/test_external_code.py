"""Setting the method from another extension's script."""

import json
import types

import pytest

from lib_ccn import external_code
from lib_ccn.external_code import get_settings, is_available, set_settings
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.webui import presets
from lib_ccn.webui.arguments import PAGE
from lib_ccn.webui.presets import PresetError, PresetStore


class Script:
    def __init__(self, title, args_from, args_to):
        self.args_from, self.args_to = args_from, args_to
        self._title = title

    def title(self):
        return self._title


COUNT = len(PAGE)


def processing(kind=tuple, count=COUNT, title="Cross-ControlNet"):
    """What a WebUI hands to scripts: all scripts' arguments in one sequence."""
    scripts = [
        Script("ControlNet", 1, 4),
        Script(title, 4, 4 + count),
        Script("Last", 4 + count, 5 + count),
    ]
    args = kind([0, "unit 0", "unit 1", "unit 2", False, *[None] * (count - 1), "last"])
    return types.SimpleNamespace(
        scripts=types.SimpleNamespace(alwayson_scripts=scripts), script_args=args
    )


@pytest.mark.parametrize("kind", [tuple, list])
def test_settings_go_where_our_arguments_are_and_nowhere_else(kind):
    p = processing(kind)
    before = p.script_args
    kept = kind(before)
    assert set_settings(p, {"delta": 0.4})
    assert get_settings(p) == Settings(enabled=True, delta=0.4)
    assert type(p.script_args) is kind
    assert before == kept
    assert len(p.script_args) == len(before)
    assert [a for i, a in enumerate(p.script_args) if i != 4] == [
        a for i, a in enumerate(before) if i != 4
    ]
    json.dumps(p.script_args)


def test_what_is_taken_for_settings():
    p = processing()
    set_settings(p, Settings(delta=0.4))
    assert get_settings(p) == Settings(delta=0.4)
    set_settings(p, Settings(enabled=True, delta=0.4), fusion="pix", inject=False)
    assert get_settings(p) == Settings(enabled=True, delta=0.4, fusion="pix", inject=False)
    set_settings(p, {}, start_step=2)
    assert get_settings(p) == Settings(enabled=True, start_step=2)
    set_settings(p, {"enabled": False, "delta": 0.1})
    assert get_settings(p) == Settings(delta=0.1)


def test_none_switches_off_or_keeps_what_is_there():
    p = processing()
    set_settings(p, {"delta": 0.4, "fusion": "pix"})
    set_settings(p, None, delta=0.5)
    assert get_settings(p) == Settings(enabled=True, delta=0.5, fusion="pix")
    set_settings(p, None)
    assert get_settings(p) == Settings()


def test_what_the_page_sent_is_read():
    p = processing()
    args = list(p.script_args)
    args[4:6] = [True, "pix"]
    p.script_args = tuple(args)
    assert get_settings(p) == Settings(enabled=True, fusion="pix")


def test_a_cell_of_a_plot_has_its_own_settings():
    p = processing()
    p.cross_controlnet_axes = {"delta": 0.2}
    assert get_settings(p) == Settings(enabled=True, delta=0.2)


def test_a_preset_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "default_store", lambda: PresetStore(tmp_path))
    p = processing()
    set_settings(p, {"preset": "PixFusion only", "delta": 0.6, "foreground_word": "star"})
    assert get_settings(p) == Settings(
        enabled=True, fusion="pix", inject=False, delta=0.6, foreground_word="star"
    )
    assert "preset" not in p.script_args[4]
    with pytest.raises(PresetError, match="no preset 'gone'"):
        set_settings(p, {"preset": "gone"})


@pytest.mark.parametrize(
    ("settings", "changes", "error"),
    [
        ({"delta": 7}, {}, SettingsError),
        ({"detla": 0.7}, {}, SettingsError),
        ({}, {"delta": "0.7"}, SettingsError),
        (None, {"nothing": 1}, SettingsError),
        ([True, "pix"], {}, TypeError),
        ("SDXL", {}, TypeError),
    ],
)
@pytest.mark.parametrize("title", ["Cross-ControlNet", "Something else"])
def test_what_is_refused_changes_nothing(settings, changes, error, title):
    p = processing(title=title)
    before = p.script_args
    with pytest.raises(error):
        set_settings(p, settings, **changes)
    assert p.script_args is before


def without_scripts():
    return types.SimpleNamespace(scripts=None, script_args=(0,))


def without_arguments():
    p = processing()
    p.script_args = {}
    return p


def arguments_cut_short():
    p = processing()
    p.script_args = p.script_args[:3]
    return p


def without_controls():
    p = processing()
    p.scripts.alwayson_scripts[1].args_from = None
    return p


@pytest.mark.parametrize(
    "make",
    [
        object,
        without_scripts,
        without_arguments,
        arguments_cut_short,
        without_controls,
        lambda: processing(title="Something else"),
    ],
)
def test_a_generation_without_our_script(make):
    p = make()
    assert is_available(p) is False
    assert get_settings(p) is None
    assert set_settings(p, {"delta": 0.4}) is False
    assert set_settings(p, None, delta=0.4) is False


def test_it_is_available_where_the_script_is():
    assert is_available(processing()) is True
    assert is_available(processing(count=1)) is True


def test_the_public_names_are_there():
    assert {*external_code.__all__} == {
        "TITLE",
        "Settings",
        "get_settings",
        "is_available",
        "set_settings",
    }
    assert all(hasattr(external_code, name) for name in external_code.__all__)

"""Presets: what a name may be, what a file may hold, and what a broken one costs."""

import json
import os
import sys
import threading
import types
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_ccn.settings import VERSION, Settings, SettingsError, fields
from lib_ccn.showable import has_hidden
from lib_ccn.webui import presets
from lib_ccn.webui.presets import (
    BUILT_IN,
    COUNT_LIMIT,
    FILE_LIMIT,
    METHOD,
    NAME_LIMIT,
    PRESET_FIELDS,
    SCENE,
    PresetError,
    PresetStore,
    default_store,
)


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "presets")


def files(store):
    return sorted(os.listdir(store.folder)) if store.folder.exists() else []


def put(store, file_name, content):
    store.folder.mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (store.folder / file_name).write_bytes(data)


def test_built_in_presets_are_complete_and_accepted(store):
    assert store.names() == [
        "Paper (SD 1.5)",
        "Layers",
        "PixFusion only",
        "SDXL",
        "Complementary conditions",
    ]
    for preset in store.all():
        assert preset.built_in
        assert set(preset.settings) == set(METHOD)
        assert Settings(**preset.settings).replace(enabled=True).enabled
        assert preset.description.endswith(".")
        assert "\n" not in preset.description
    assert files(store) == []


def test_what_the_built_in_presets_set(store):
    paper = store.load("Paper (SD 1.5)")
    assert (paper["fusion"], paper["delta"], paper["inject"]) == ("pix+channel", 0.7, True)
    assert (paper["start_step"], paper["start_layer"], paper["mask_source"]) == ("auto", 0, "word")
    pix = store.load("PixFusion only")
    assert (pix["fusion"], pix["inject"]) == ("pix", False)
    assert store.load("SDXL")["mask_reduction"] == 4
    complementary = store.load("Complementary conditions")
    assert complementary["delta"] < paper["delta"]
    assert complementary["inject"] is False


def test_a_preset_gives_the_whole_method(store):
    store.save("mine", {"delta": 0.4})
    loaded = store.load("mine")
    assert loaded == {**{name: fields()[name].default for name in METHOD}, "delta": 0.4}
    assert set(PRESET_FIELDS) == {*METHOD, *SCENE}


def test_scene_settings_are_kept_only_where_they_were_chosen(store):
    store.save("mine", {"foreground_word": "red star", "foreground_unit": "auto"})
    loaded = store.load("mine")
    assert loaded["foreground_word"] == "red star"
    assert "foreground_unit" not in loaded
    assert not set(SCENE) & set(store.load("SDXL"))


def test_what_is_no_part_of_a_preset_is_not_saved(store):
    store.save("mine", {"enabled": True, "strict": True, "mask_image": "AAAA", "show_mask": True})
    assert set(store.load("mine")) == set(METHOD)


def test_what_load_returns_is_the_callers_own(store):
    store.load("SDXL")["delta"] = 0
    assert store.load("SDXL")["delta"] == BUILT_IN["SDXL"]["delta"] == 0.7


def test_save_load_list_overwrite_delete(store):
    store.save("zebra", {"delta": 0.1})
    store.save("Apple", {"delta": 0.2})
    assert store.names()[len(BUILT_IN) :] == ["Apple", "zebra"]
    store.save("apple", {"delta": 0.3})
    assert store.names()[len(BUILT_IN) :] == ["apple", "zebra"]
    assert store.load("APPLE")["delta"] == 0.3
    assert len(files(store)) == 2
    store.delete("aPPle")
    assert store.names()[len(BUILT_IN) :] == ["zebra"]
    with pytest.raises(PresetError, match="no preset 'apple'"):
        store.delete("apple")
    assert store.problems() == []


def test_a_file_says_name_version_and_settings(store):
    store.save("mine", {"delta": 0.4})
    content = json.loads((store.folder / files(store)[0]).read_text("utf-8"))
    assert content["name"] == "mine"
    assert content["version"] == VERSION
    assert content["settings"]["delta"] == 0.4


@pytest.mark.parametrize(
    "name", ["SDXL", "sdxl", " sdxl ", "paper (sd 1.5)", "\uff33\uff24\uff38\uff2c"]
)
def test_built_in_presets_stay(store, name):
    with pytest.raises(PresetError, match="built in"):
        store.save(name, {})
    with pytest.raises(PresetError, match="built in"):
        store.delete(name)
    put(store, "x.json", {"name": name, "settings": {"delta": 0.1}})
    assert store.load("SDXL")["delta"] == 0.7
    assert "built-in" in store.problems()[0]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "  ",
            "-",
            "../",
            "a\x00b",
            "\ud800x",
            "x" * (NAME_LIMIT + 1),
            None,
            5,
            ["a"],
            b"a",
            {},
        ),
        *("\x1b[31mred", "a\x9bb", "mine\u200e", "\u202eenim", "mi\u2066ne\u2069", "mi\u200bne"),
        *(
            "mi\u200dne",
            "mine\ufeff",
            "mi\u00adne",
            "mi\u2060ne",
            "\u3164",
            "mine\ufe0f",
            "a\U000e0061",
        ),
    ],
)
def test_names_that_are_refused(store, name):
    for call in (
        lambda: store.save(name, {}),
        lambda: store.load(name),
        lambda: store.delete(name),
    ):
        with pytest.raises(PresetError, match=r"preset name .* is refused") as caught:
            call()
        assert not has_hidden(str(caught.value))
    assert files(store) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..\\..\\x",
        "/absolute",
        "C:\\x",
        "con",
        "NUL.json",
        "a/b",
        ".hidden",
        "x.json",
        "~x",
        "$(x)",
        "% x",
        "x" * NAME_LIMIT,
        "ж" * NAME_LIMIT,
        "猫",
        "İ",
        "ß",
        "👩‍🚀 1",
    ],
)
def test_any_name_makes_a_plain_file_name(store, name):
    store.save(name, {"delta": 0.4})
    assert store.load(name)["delta"] == 0.4
    (file_name,) = files(store)
    stem = file_name.removesuffix(".json")
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert "-" in stem.strip("-")  # so that no reserved name is all of it
    assert len(file_name) < 70
    assert os.listdir(store.folder.parent) == ["presets"]
    store.delete(name)
    assert files(store) == []


def test_names_are_compared_as_people_read_them(store):
    store.save("Café", {"delta": 0.1})
    store.save(unicodedata.normalize("NFD", "café"), {"delta": 0.2})
    assert store.names()[len(BUILT_IN) :] == ["café"]
    store.save("  two   words ", {"delta": 0.3})
    assert store.load("two words")["delta"] == 0.3


def test_capitals_make_no_other_preset_and_it_is_told_which_was_replaced(store):
    store.save("Café", {"delta": 0.1})
    assert store.save("Café", {"delta": 0.2}).replaced == ""
    assert store.save("CAFÉ", {"delta": 0.3}).replaced == "Café"
    assert store.save("new", {}).replaced == ""
    assert store.names()[len(BUILT_IN) :] == ["CAFÉ", "new"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße", "STRASSE"),
        ("Straße", "strasse"),
        ("ﬁne", "fine"),
        ("x²", "x2"),
        ("No①", "No1"),
        ("\u017ftar", "star"),
        ("\u00bd", "1\u20442"),
        ("\u0149", "\u02bcn"),
        ("café", "cafe"),
        ("\uff41", "a"),
    ],
)
def test_names_that_differ_in_a_letter_are_two_presets(store, one, other):
    store.save(one, {"delta": 0.1})
    with pytest.raises(PresetError, match="no preset"):
        store.load(other)
    assert store.save(other, {"delta": 0.2}).replaced == ""
    assert store.load(one)["delta"] == 0.1
    assert store.load(other)["delta"] == 0.2
    assert len(files(store)) == 2
    store.delete(one)
    assert store.load(other)["delta"] == 0.2
    assert store.problems() == []


@given(st.text(max_size=NAME_LIMIT + 5))
def test_a_name_is_refused_or_comes_back(tmp_path_factory, name):
    store = PresetStore(tmp_path_factory.getbasetemp() / "any-name")
    try:
        saved = store.save(name, {"delta": 0.4})
    except PresetError:
        return
    assert store.load(name)["delta"] == 0.4
    assert saved.name in store.names()
    store.delete(name)
    assert files(store) == []


BROKEN = {
    "empty.json": b"",
    "half.json": b'{"name": "half", "sett',
    "latin.json": '{"name": "grün", "settings": {}}'.encode("latin-1"),
    "list.json": [],
    "no-name.json": {"settings": {}},
    "no-settings.json": {"name": "x1"},
    "number-name.json": {"name": 5, "settings": {}},
    "bad-value.json": {"name": "x2", "settings": {"delta": 7}},
    "nan.json": b'{"name": "x3", "settings": {"delta": NaN}}',
    "unknown.json": {"name": "x4", "settings": {"detla": 1}},
    "settings-list.json": {"name": "x5", "settings": [1]},
    "version.json": {"name": "x6", "version": "one", "settings": {}},
    "deep.json": b'{"name": "x7", "settings": ' + b"[" * 30000 + b"]" * 30000 + b"}",
    "digits.json": b'{"name": "x8", "settings": {"start_step": ' + b"9" * 9000 + b"}}",
    "large.json": {"name": "x9", "settings": {}, "more": "x" * FILE_LIMIT},
    "surrogate.json": b'{"name": "x\\ud800", "settings": {}}',
}


def test_a_broken_file_is_named_and_the_others_load(store):
    store.save("good", {"delta": 0.4})
    for name, content in BROKEN.items():
        put(store, name, content)
    (store.folder / "folder.json").mkdir()
    (store.folder / "note.txt").write_text("no preset")
    assert store.names()[len(BUILT_IN) :] == ["good"]
    problems = store.problems()
    assert len(problems) == len(BROKEN)
    for name in BROKEN:
        assert sum(repr(name) in problem for problem in problems) == 1
    assert all("\n" not in problem and len(problem) < 600 for problem in problems)
    named = next(p for p in problems if "bad-value.json" in p)
    assert "delta" in named
    assert "from 0 to 1" in named


def test_what_is_said_of_the_folder_can_be_shown(tmp_path):
    store = PresetStore(tmp_path / "\x1b[31m\u202e")
    put(store, "\x1b[2J.json", {"name": "a\u202eb", "settings": {}})
    put(store, "<b>\n.json", {"name": "x", "settings": {"\x1b": 1}})
    put(store, "c.json", {"name": "y", "settings": {"delta": "\x1b[31m"}})
    (tmp_path / "file").write_text("")
    said = [*store.problems(), *PresetStore(tmp_path / "file" / "\x1b").problems()]
    assert len(said) == 4
    assert not any(map(has_hidden, said))
    assert sum("Delta (delta) = " in problem for problem in said) == 1


def test_a_preset_of_a_newer_version_loads_what_is_known(store):
    put(
        store,
        "new.json",
        {"name": "new", "version": VERSION + 1, "settings": {"delta": 0.4, "wavelets": 3}},
    )
    assert store.load("new")["delta"] == 0.4


def test_saved_by_an_editor_with_a_byte_order_mark(store):
    put(store, "bom.json", "\ufeff".encode() + b'{"name": "bom", "settings": {"delta": 0.4}}')
    assert store.load("bom")["delta"] == 0.4


def test_two_files_of_one_name(store):
    put(store, "a.json", {"name": "Twice", "settings": {"delta": 0.1}})
    put(store, "b.json", {"name": "twice", "settings": {"delta": 0.2}})
    assert store.load("twice")["delta"] == 0.1
    (problem,) = store.problems()
    assert "b.json" in problem
    assert "a.json" in problem
    store.save("TWICE", {"delta": 0.3})
    assert store.load("twice")["delta"] == 0.3
    assert files(store) == ["a.json", "b.json"]


def test_saving_spares_a_broken_file_in_its_place(store):
    store.save("mine", {"delta": 0.1})
    (file_name,) = files(store)
    put(store, file_name, b"{broken")
    store.save("mine", {"delta": 0.2})
    assert store.load("mine")["delta"] == 0.2
    assert (store.folder / file_name).read_bytes() == b"{broken"


def test_refused_values_are_not_saved(store):
    with pytest.raises(SettingsError, match="delta"):
        store.save("mine", {"delta": 7})
    with pytest.raises(SettingsError, match="did you mean delta"):
        store.save("mine", {"detla": 0.7})
    with pytest.raises(SettingsError, match="mapping"):
        store.save("mine", [0.7])
    assert files(store) == []


def test_a_failed_save_leaves_the_old_preset(store, monkeypatch):
    store.save("mine", {"delta": 0.1})
    before = files(store)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(presets.os, "replace", full)
    with pytest.raises(PresetError, match="No space left on device"):
        store.save("mine", {"delta": 0.2})
    assert files(store) == before
    assert store.load("mine")["delta"] == 0.1


def test_a_folder_that_cannot_be_used_costs_only_the_saved_presets(tmp_path):
    (tmp_path / "file").write_text("")
    store = PresetStore(tmp_path / "file")
    assert store.names() == list(BUILT_IN)
    assert len(store.problems()) == 1
    assert store.load("SDXL")["delta"] == 0.7
    with pytest.raises(PresetError, match="not saved"):
        store.save("mine", {})
    with pytest.raises(PresetError, match="no preset"):
        store.load("mine")


def test_an_unreadable_folder(store, monkeypatch):
    store.save("mine", {})

    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(presets.os, "listdir", denied)
    assert store.names() == list(BUILT_IN)
    assert "Permission denied" in store.problems()[0]


def test_an_unknown_preset_names_the_nearest(store):
    with pytest.raises(PresetError, match="did you mean 'SDXL'") as caught:
        store.load("SDXLL")
    assert "'Paper (SD 1.5)'" in str(caught.value)
    with pytest.raises(PresetError, match="none is saved"):
        store.delete("mine")


def test_not_more_than_a_screenful_of_presets(store, monkeypatch):
    monkeypatch.setattr(presets, "COUNT_LIMIT", 3)
    for number in range(3):
        store.save(f"p{number}", {})
    with pytest.raises(PresetError, match="there are 3 already"):
        store.save("p3", {})
    store.save("p1", {"delta": 0.2})
    put(store, "zz.json", {"name": "by hand", "settings": {}})
    assert len(store.names()) == len(BUILT_IN) + 3
    assert "first 3 files" in store.problems()[0]
    assert COUNT_LIMIT >= 100


def test_saving_from_several_tabs_at_once(store):
    names = [f"p{number % 4}" for number in range(40)]
    threads = [
        threading.Thread(target=store.save, args=(name, {"start_step": number}))
        for number, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.names()[len(BUILT_IN) :] == ["p0", "p1", "p2", "p3"]
    assert store.problems() == []
    assert len(files(store)) == 4


def test_the_webui_s_folder(monkeypatch, tmp_path):
    options = types.SimpleNamespace(cross_controlnet_presets=None)
    modules = types.ModuleType("modules")
    modules.paths_internal = types.SimpleNamespace(data_path=str(tmp_path))
    modules.shared_cmd_options = types.SimpleNamespace(cmd_opts=options)
    monkeypatch.setitem(sys.modules, "modules", modules)
    assert default_store().folder == tmp_path / "cross-controlnet-presets"
    options.cross_controlnet_presets = str(tmp_path / "chosen")
    assert default_store().folder == tmp_path / "chosen"
    del options.cross_controlnet_presets
    assert default_store().folder == tmp_path / "cross-controlnet-presets"

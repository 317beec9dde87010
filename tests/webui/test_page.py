"""What the accordion shows of text: its own in whole paragraphs, others' as text and not markup."""

import html
import importlib
import json
import re
import sys
from types import SimpleNamespace

import pytest

from lib_ccn.settings import fields
from lib_ccn.showable import has_hidden
from lib_ccn.webui.arguments import PAGE, RefusedError, read, unit_choices
from lib_ccn.webui.infotext import page_value
from lib_ccn.webui.presets import BUILT_IN, PresetStore

gradio = pytest.importorskip("gradio", reason="gradio is not installed")
accordion = importlib.import_module("lib_ccn.webui.accordion")
gradio_versions = importlib.import_module("lib_ccn.webui.gradio_versions")
preset_row = importlib.import_module("lib_ccn.webui.preset_row")

MARKUP = ["*md*", "<b>bold</b>", "[a](b)", "# a", "`a`", "&amp;", '<img src="x" onerror="a()">']


@pytest.fixture
def row(tmp_path):
    """The row of presets, with its events by name, and its store."""
    store = PresetStore(tmp_path / "presets")
    with gradio.Blocks() as page:
        made = preset_row.PresetRow("tab", store)
        controls = {name: gradio.Textbox() for name in PAGE}
        made.connect(controls, gradio.Checkbox())
    events = {fn.fn.__name__: fn.fn for fn in page.fns.values()}
    return SimpleNamespace(store=store, page=page, made=made, **events)


def said(answer):
    return answer[0]["value"]


def values():
    return [fields()[name].default for name in (*preset_row.METHOD, *preset_row.SCENE)]


@pytest.mark.parametrize("name", MARKUP)
def test_a_preset_s_name_is_text(row, name):
    for answer in (
        row.save(None, name, *values()),
        row.load(name),
        row.load(name + "?"),
        row.delete(name, ""),
        row.delete(name, said(row.delete(name, ""))),
        row.delete(name, ""),
    ):
        shown = said(answer)
        assert name in html.unescape(shown)
        assert not re.search(r"<|&(?!#?\w+;)", shown)
    assert isinstance(row.made._message, gradio.HTML), "Markdown would read it"


@pytest.mark.parametrize("name", [*MARKUP, "\x1b[31m", "\u202e"])
def test_what_is_wrong_with_the_folder_is_text(row, name):
    row.store.folder.mkdir()
    content = {"name": "x", "settings": {"delta": name}}
    (row.store.folder / "a.json").write_text(json.dumps(content), "utf-8")
    shown = said(row.refresh(None))
    assert "Delta (delta)" in shown
    assert "<" not in shown
    assert not has_hidden(shown)


def test_an_unforeseen_error_is_a_sentence_and_changes_nothing(row, monkeypatch, caplog):
    def fail(*_):
        raise OSError("as a test")

    for name in ("load", "save", "delete", "names", "all"):
        monkeypatch.setattr(PresetStore, name, fail)
    answers = [
        row.load("x"), row.save("x", "", *values()), row.delete("x", ""), row.refresh(None),
        row.begin(*values()), [row.compare("x", *values())],
    ]  # fmt: skip
    for message, *others in answers:
        assert message["value"] == "This failed (OSError); the console says more."
        assert others == [gradio.update()] * len(others)
    assert caplog.text.count("OSError: as a test") == len(answers)


def test_values_come_as_the_browser_sends_them(row):
    """Gradio would refuse some of them with an error box of its own."""
    with gradio.Blocks() as page:
        accordion.Accordion("txt2img", row.store, "", 3).follow_units([gradio.Dropdown()])
    listening = [fn for fn in (*row.page.fns.values(), *page.fns.values()) if fn.inputs]
    assert len(listening) > 30
    assert not any(fn.preprocess for fn in listening)


def test_a_preset_takes_back_who_was_in_front_otherwise(row):
    names = [*preset_row.METHOD, *preset_row.SCENE]
    given = values()
    given[names.index("layers")] = "1 fox, 0 star"
    row.save(None, "two", *given)
    changes = dict(zip(names, row.load("two")[1:], strict=True))
    assert changes["layers"]["value"] == "1 fox, 0 star"
    assert changes["foreground_unit"]["value"] == "auto"
    assert changes["foreground_word"]["value"] == ""
    given = values()
    given[names.index("foreground_unit")] = "0"
    row.save(None, "one", *given)
    changes = dict(zip(names, row.load("one")[1:], strict=True))
    assert (changes["layers"]["value"], changes["foreground_unit"]["value"]) == ("", "0")
    assert changes["foreground_word"] == gradio.update()


def test_a_refused_value_is_told_by_its_label(row):
    given = values()
    given[0] = "mix"
    assert "Fusion mode (fusion) = 'mix' is refused" in html.unescape(
        said(row.save("", "a", *given))
    )


def test_it_is_said_which_preset_was_replaced(row):
    row.save(None, "Mine", *values())
    assert (
        html.unescape(said(row.save(None, "mine", *values()))) == "Saved 'mine' in place of 'Mine'."
    )
    assert html.unescape(said(row.save("mine", "", *values()))) == "Saved 'mine'."


def test_a_preset_is_deleted_only_where_the_question_stands_on_the_page(row):
    for name in ("one", "two"):
        row.save(None, name, *values())
    question = said(row.delete("one", ""))
    assert "Click Delete again" in question
    for other in ("", said(row.load("one")), said(row.delete("two", question))):
        assert said(row.delete("one", other)) == question
    assert {"one", "two"} <= set(row.store.names())
    assert html.unescape(said(row.delete("one", question))) == "Deleted 'one'."
    assert "one" not in row.store.names()
    assert "two" in row.store.names()


@pytest.mark.parametrize("preset", list(BUILT_IN))
def test_a_built_in_preset_is_not_asked_about(row, preset):
    assert "is built in and cannot be deleted" in said(row.delete(preset, ""))


def test_what_a_preset_is_stands_below_it(row):
    description = row.store.all()[0].description
    shown = [
        page_value(name, BUILT_IN["Paper (SD 1.5)"].get(name, fields()[name].default))
        for name in (*preset_row.METHOD, *preset_row.SCENE)
    ]
    for answer in (row.begin(*shown), row.refresh("Paper (SD 1.5)")):
        assert html.unescape(said(answer)) == description
    assert description in html.unescape(said(row.load("Paper (SD 1.5)")))
    row.save(None, "mine", *values())
    assert said(row.refresh("mine")) == ""


def test_every_paragraph_of_about_is_one_line():
    """gradio 3.41 shows the line ends inside of one."""
    paragraphs = accordion._about().split("\n\n")
    assert len(paragraphs) == 3
    for paragraph in paragraphs:
        lines = paragraph.split("\n")
        assert len(lines) == 1 or all(line.startswith("- **") for line in lines)


def test_no_markdown_or_help_of_the_page_has_a_line_end(tmp_path):
    with gradio.Blocks() as page:
        accordion.Accordion("txt2img", PresetStore(tmp_path), "", 3)
    for block in page.blocks.values():
        info = getattr(block, "info", None) or ""
        assert "\n" not in info
        if isinstance(block, gradio.Markdown) and block.value != accordion._about():
            assert "\n" not in block.value.strip()


@pytest.mark.parametrize("folder", ["a b", "a(b)", "a#b", "50%", "ä"])
def test_a_link_leads_to_any_folder(tmp_path, folder):
    url = gradio_versions.file_url(tmp_path / folder / "README.md")
    assert re.fullmatch(r"[\w/=.:%~-]+", url, re.ASCII)


@pytest.mark.parametrize("text", ["\ud800", "\x1b[31m", "\u202e", "a\nb"])
def test_others_names_are_escaped(text):
    assert not any(map(has_hidden, unit_choices([text, f"model {text}"])))
    refused = RefusedError(f"preset {text}")
    assert not has_hidden(str(refused.detail))
    str(refused.detail).encode("utf-8")


NAMED = [(name, setting) for name, setting in fields().items() if setting.titles]


@pytest.mark.parametrize(("name", "setting"), NAMED)
def test_choices_are_read_by_their_names_and_as_themselves(name, setting):
    assert len(set(setting.titles)) == len(setting.choices)
    assert not set(setting.titles) & set(setting.choices)
    for choice, title in zip(setting.choices, setting.titles, strict=True):
        assert page_value(name, choice) == title
        for given in (title, choice):
            args = [True, *(None for _ in PAGE[1:])]
            args[PAGE.index(name)] = given
            request = read(args)
            assert getattr(request.settings, name) == choice
            assert "(" not in request.to_infotext().get(setting.infotext, "")


@pytest.fixture
def saved_page(monkeypatch, tmp_path):
    """A WebUI's file of the page's defaults, by label."""

    def save(tab="txt2img", **labels):
        path = tmp_path / "ui-config.json"
        place = "customscript/cross_controlnet.py"
        values = {f"{place}/{tab}/{label}/value": value for label, value in labels.items()}
        path.write_text(json.dumps(values), "utf-8")
        options = SimpleNamespace(cmd_opts=SimpleNamespace(ui_config_file=str(path)))
        monkeypatch.setitem(sys.modules, "modules", SimpleNamespace(shared_cmd_options=options))
        monkeypatch.setitem(sys.modules, "modules.shared_cmd_options", options)

    return save


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"Fusion mode": "pix"}, {"fusion": "pix"}),
        ({"Foreground mask from": "silhouette"}, {"mask_source": "silhouette"}),
        ({"Show mask": True}, {"show_mask": True}),
        ({"Fusion mode": "PixFusion"}, {}),  # the WebUI restores these itself
        ({"Fusion mode": "mix", "Show mask": "yes"}, {}),
        ({}, {}),
    ],
)
def test_defaults_saved_by_an_earlier_version_are_kept(saved_page, labels, expected):
    saved_page(**labels)
    assert accordion._saved("txt2img") == expected
    assert accordion._saved("img2img") == {}


def test_without_a_webui_there_are_no_saved_defaults():
    assert accordion._saved("txt2img") == {}


@pytest.mark.parametrize("preset", list(BUILT_IN))
def test_the_preset_of_the_present_values_is_named(row, preset):
    values = {**{name: fields()[name].default for name in PAGE}, **row.store.load(preset)}
    shown = [page_value(name, values[name]) for name in (*preset_row.METHOD, *preset_row.SCENE)]
    named = row.begin(*shown)[1]["value"]
    assert row.store.load(named) == row.store.load(preset)
    assert row.compare(named, *shown)["value"] == ""
    shown[1] = 0.45
    assert row.compare(named, *shown)["value"] == "changed"
    assert row.begin(*shown)[1]["value"] is None
    assert row.compare(None, *shown)["value"] == ""


def test_advanced_holds_everything_but_the_rows_presets_and_what_was_done(tmp_path):
    with gradio.Blocks() as page:
        accordion.Accordion("txt2img", PresetStore(tmp_path), "", 3)
    named = {block.elem_id: block for block in page.blocks.values() if block.elem_id}
    begin = "txt2img_cross_controlnet_"
    folded = set()
    for element_id, block in named.items():
        while block is not None and block is not named[f"{begin}advanced"]:
            block = block.parent
        if block is not None:
            folded.add(element_id.removeprefix(begin))
    assert folded >= set(PAGE) - {"enabled", "show_mask"}
    assert not folded & {"head", "presets", "preset", "show_mask"}

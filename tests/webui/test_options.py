"""The settings page's section, with a settings page reduced to what it keeps."""

import io
import logging
import sys
import types

import pytest

from lib_ccn.showable import has_hidden
from lib_ccn.webui import console, options
from lib_ccn.webui.presets import BUILT_IN, PresetStore


class OptionInfo:
    """The WebUI's own has these arguments in all four."""

    def __init__(
        self,
        default=None,
        label="",
        component=None,
        component_args=None,
        onchange=None,
        section=None,
        refresh=None,
    ):
        self.default, self.label, self.component = default, label, component
        self.component_args, self.onchange = component_args, onchange
        self.section, self.refresh = section, refresh

    def info(self, text):
        self.text = text
        return self


class Options:
    def __init__(self):
        self.data, self.data_labels = {}, {}

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)


@pytest.fixture
def shared(monkeypatch, tmp_path):
    modules = types.ModuleType("modules")
    modules.shared = types.SimpleNamespace(OptionInfo=OptionInfo, opts=Options())
    monkeypatch.setitem(sys.modules, "modules", modules)
    gradio = types.ModuleType("gradio")
    gradio.Dropdown, gradio.Radio = object(), object()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setattr(options, "default_store", lambda: PresetStore(tmp_path))
    return modules.shared


@pytest.fixture(autouse=True)
def _logger_as_before():
    logger = logging.getLogger("lib_ccn")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers = before[1], before[2]


def test_what_is_in_force_before_the_options_are_made(shared):
    assert options.default_preset() == ""
    assert options.log_level() == "INFO"
    assert options.saves_masks() is False


def test_the_section(shared):
    options.register()
    labels = shared.opts.data_labels
    assert [info.label for info in labels.values()] == [
        "Default preset",
        "Log level",
        "Save foreground masks",
    ]
    assert {info.section for info in labels.values()} == {options.SECTION}
    assert all(key.startswith("cross_controlnet_") for key in labels)
    options.register()
    assert len(labels) == 3


def test_the_default_preset_is_one_of_the_presets(shared, tmp_path):
    options.register()
    dropdown = shared.opts.data_labels[options.PRESET]
    PresetStore(tmp_path).save("mine", {"delta": 0.4})
    assert dropdown.component_args()["choices"] == [options.NO_PRESET, *BUILT_IN, "mine"]
    shared.opts.data[options.PRESET] = "mine"
    assert options.default_preset() == "mine"


def test_a_default_preset_that_is_gone_is_still_a_choice(shared):
    shared.opts.data[options.PRESET] = "gone"
    options.register()
    # Gradio 4 refuses the whole page for a value that is none.
    assert "gone" in shared.opts.data_labels[options.PRESET].component_args()["choices"]


@pytest.mark.parametrize("value", [None, 5, ["SDXL"], ""])
def test_a_config_file_may_hold_anything(shared, value):
    shared.opts.data = dict.fromkeys((options.PRESET, options.LOG_LEVEL, options.SAVE_MASKS), value)
    assert options.default_preset() == ""
    assert options.log_level() == "INFO"
    assert options.saves_masks() is False


def test_the_log_level_is_applied_when_it_changes(shared):
    options.register()
    logger = logging.getLogger("lib_ccn")
    assert logger.level == logging.INFO
    shared.opts.data[options.LOG_LEVEL] = "WARNING"
    shared.opts.data_labels[options.LOG_LEVEL].onchange()
    assert logger.level == logging.WARNING


def test_masks_are_saved_only_when_asked_for(shared):
    options.register()
    assert options.saves_masks() is False
    shared.opts.data[options.SAVE_MASKS] = True
    assert options.saves_masks() is True


@pytest.mark.parametrize("root_has_a_handler", [False, True])
def test_one_clean_line_for_each_message(monkeypatch, root_has_a_handler):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    root = logging.getLogger()
    handler = logging.StreamHandler(out)
    if root_has_a_handler:
        root.addHandler(handler)
    try:
        console.start("INFO")
        console.start("INFO")
        log = logging.getLogger("lib_ccn.webui.anything")
        log.debug("not shown")
        log.info("2 units fused")
        log.warning("no mask")
        log.warning("Cross-ControlNet stands aside: one unit")
        log.warning("Cross-ControlNet: no word")
        console.start("WARNING")
        log.info("not shown either")
    finally:
        root.removeHandler(handler)
    assert out.getvalue().splitlines() == [
        "[Cross-ControlNet] 2 units fused",
        "[Cross-ControlNet] WARNING: no mask",
        "[Cross-ControlNet] WARNING: stands aside: one unit",
        "[Cross-ControlNet] WARNING: no word",
    ]


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J\x1b[31m", "\ud800", "\u202eder", "a\x9bb", "\r[Cross-ControlNet] all is well", "\0"],
)
def test_nothing_from_outside_drives_the_terminal(monkeypatch, text):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    console.start("INFO")
    log = logging.getLogger("lib_ccn.webui.anything")
    log.info("%s", text)
    try:
        raise ValueError(text)
    except ValueError as error:
        log.warning("failed: %s", error, exc_info=error)
    lines = out.getvalue().split("\n")[:-1]
    assert not any(map(has_hidden, lines))
    assert "ValueError" in lines[-1]


def test_further_lines_do_not_pass_for_messages(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    console.start("INFO")
    logging.getLogger("lib_ccn").info("one\n[Cross-ControlNet] two")
    assert out.getvalue() == "[Cross-ControlNet] one\n    [Cross-ControlNet] two\n"


def test_the_console_may_be_exchanged(monkeypatch):
    console.start("INFO")
    for _ in range(2):
        out = io.StringIO()
        monkeypatch.setattr(sys, "stderr", out)
        logging.getLogger("lib_ccn").info("here")
        assert out.getvalue() == "[Cross-ControlNet] here\n"

"""The playground's page: built, driven, served, and clicked in a browser.

Needs gradio, which `run.py test` installs. The browser's test needs selenium and Chromium too.
"""

import importlib.util
import os
import re
import socket
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lib_ccn.playground.demo_model import load_pipeline
from lib_ccn.playground.examples import bundled_examples
from lib_ccn.playground.page_command import keep_to_this_machine, serve
from lib_ccn.playground.page_inputs import editor_value, shown_condition
from lib_ccn.playground.page_run import Studio
from lib_ccn.settings import fields
from lib_ccn.webui.arguments import PAGE
from lib_ccn.webui.presets import PresetStore

keep_to_this_machine(os.environ)
pytest.importorskip("gradio", reason="gradio is not installed (requirements/playground.txt)")
page = importlib.import_module("lib_ccn.playground.page")
Events = importlib.import_module("lib_ccn.playground.page_events").Events

ROOT = Path(__file__).parents[1]
WINDOW = SimpleNamespace(session_hash="a window")


def browser_tools():
    """What the tests of the WebUIs' pages drive a browser with."""
    spec = importlib.util.spec_from_file_location("host_page", ROOT / "tests/hosts/page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def studio():
    return Studio(load_pipeline(), ("outline", "regions"))


@pytest.fixture
def events(studio):
    return Events(studio, bundled_examples())


@pytest.fixture(scope="module")
def made(studio, tmp_path_factory):
    start = page.Start(bundled_examples(), 3.0, "")
    return page.build(studio, PresetStore(tmp_path_factory.mktemp("presets")), start)


@pytest.fixture(scope="module")
def url(made):
    url = serve(made, None, opens=False)
    yield url
    made.close()


def controls(**changes):
    """The page's values in the order of the click."""
    example = bundled_examples()[0]
    pictures = [editor_value(shown_condition(c)) for c in (example.foreground, example.background)]
    values = {"prompt": example.prompt, "steps": 2, "second": True, **changes}
    method = {name: fields()[name].default for name in PAGE}
    method.update({"enabled": True, "foreground_word": example.word, "start_step": 1})
    return [
        *(values["prompt"], "", 0, values["steps"], 3.0),
        *(True, "outline", pictures[0]),
        *(values["second"], "regions", pictures[1]),
        *(False, "regions", None),
        *(values.get(name, method[name]) for name in PAGE),
    ]


def said(updates):
    """What the status said, one after the other."""
    place = 1 + Events.VIEWS.index("status")
    return [update[place] for update in updates if isinstance(update[place], str)]


class TestEvents:
    def test_a_click_ends_with_both_pictures_and_their_inside(self, events):
        updates = list(events.generate(WINDOW, *controls()))
        last = dict(zip(("outcome", *Events.VIEWS), updates[-1], strict=True))
        assert last["plain"].size == last["fused"].size == (512, 512)
        assert last["inside"]["visible"]
        assert "star" in last["status"]
        assert any("Plain sum: step" in text for text in said(updates))
        assert any("Cross-ControlNet: step" in text for text in said(updates))
        mask, note, winner, legend, layers = events.look(last["outcome"], 1, 2)
        assert mask.size == winner.size == (512, 512)
        assert "Step 1" in note
        assert "outline" in legend
        assert len(layers) == 7

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"second": False}, "Two ControlNets"),
            ({"steps": 0}, "Steps: 0 is not 1 to 100"),
            ({"delta": 7}, "Delta (delta) = 7"),
            ({"foreground_unit": "2"}, "foreground_unit"),
            ({"mask_source": "image"}, "mask_image"),
        ],
    )
    def test_what_is_refused_is_said_in_words(self, events, changes, words):
        text = said(events.generate(WINDOW, *controls(**changes)))[-1]
        assert words in text
        assert "ccn-wrong" in text
        assert "Traceback" not in text

    def test_an_unforeseen_error_is_said_in_words(self, events, studio, monkeypatch, caplog):
        def fail(*_):
            raise RuntimeError("out of <memory>\nmany more lines")

        monkeypatch.setattr(studio, "_make", fail)
        text = said(events.generate(WINDOW, *controls()))[-1]
        assert "RuntimeError): out of &lt;memory&gt;</div>" in text
        assert "out of <memory>" in caplog.text

    def test_cancel_ends_the_generation_of_its_own_window(self, events):
        updates = events.generate(WINDOW, *controls(steps=40))
        next(updates)
        events.cancel(SimpleNamespace(session_hash="another"))
        next(updates)
        events.cancel(WINDOW)
        assert said(updates)[-1] == '<div class="ccn-said">Cancelled.</div>'
        assert not events._running

    def test_a_window_that_is_closed_ends_its_generation(self, events, studio):
        updates = events.generate(WINDOW, *controls(steps=60))
        next(updates)
        updates.close()
        other = list(events.generate(SimpleNamespace(session_hash="b"), *controls()))
        assert other[-1][0].fused is not None

    def test_an_example_fills_the_page(self, events):
        example = bundled_examples()[4]
        prompt, seed, word, outline, regions, *on = events.example_values(4)
        assert (prompt, seed, word) == (example.prompt, example.seed, example.word)
        assert np.asarray(outline["background"]).shape == (512, 512, 3)
        assert not np.array_equal(outline["background"], regions["background"])
        assert on == [True, True, False]


class TestPage:
    def test_the_accordion_is_the_webuis_own(self, made):
        ids = {getattr(block, "elem_id", None) for block in made.blocks.values()}
        wanted = {f"txt2img_cross_controlnet_{name}" for name in PAGE if name != "enabled"}
        assert wanted <= ids
        assert {"txt2img_prompt", "txt2img_cross_controlnet"} <= ids
        assert "txt2img_cross_controlnet_preset" in ids

    def test_the_word_pickers_scripts_come_along(self):
        head = page.head()
        for path in (*(ROOT / "javascript").glob("*.js"), ROOT / "style.css"):
            assert path.read_text("utf-8") in head
        assert head.count("</script>") == len(list((ROOT / "javascript").glob("*.js")))

    def test_no_font_is_fetched(self):
        assert not page.theme()._stylesheets
        assert "http" not in "".join(page.theme()._font_css)


class TestServed:
    def test_it_answers_on_this_machine_alone(self, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with local.open(url) as answer:
            text = answer.read().decode()
        assert "crossControlNet" in text
        port = int(url.rstrip("/").rpartition(":")[2])
        own = socket.gethostbyname(socket.gethostname())
        if own != "127.0.0.1":
            with pytest.raises(OSError):  # noqa: PT011
                socket.create_connection((own, port), timeout=2)

    def test_a_taken_port_is_refused(self, url, made):
        port = int(url.rstrip("/").rpartition(":")[2])
        assert serve(made, port, opens=False) is None

    def test_in_a_browser(self, url, tmp_path):
        tools = browser_tools()
        try:
            driver = tools.start_browser()
        except RuntimeError as reason:
            pytest.skip(f"{reason}")
        try:
            self.click_through(tools, tools.Page(driver, url, tmp_path))
        finally:
            driver.quit()

    def click_through(self, tools, shown):
        def text(selector):
            return shown.js("return arguments[0].textContent", shown.one(selector))

        word = "#txt2img_cross_controlnet_foreground_word"

        def value(selector):
            return shown.js("return arguments[0].value", shown.one(selector))

        field = f"{word} textarea, {word} input"
        shown.driver.get(shown.url)
        tools.until(lambda: shown.all(".ccn-chip"), "chips of the first example's words", 60)
        tools.until(lambda: shown.all("#ccn_condition_1 canvas"), "editors", 60)
        tools.until(lambda: value(field) == "star", "the example's word")
        assert text(".ccn-badge") == "2 units fused + injection"
        shown.click(".ccn-chip")
        tools.until(lambda: value(field) == "cyan star", "a phrase, after a click on a chip")
        steps = "#ccn_steps input[type=number]"
        shown.js(tools.SET_TEXT, shown.one(steps), "3")
        shown.click("#txt2img_generate")
        tools.until(lambda: "cyan star" in text("#ccn_status"), "the summary", 120)
        for name in ("plain", "fused", "mask", "winner"):
            tools.until(lambda name=name: shown.all(f"#ccn_{name} img"), name)
        before = text("#ccn_winner_note")
        shown.js(tools.SET_TEXT, shown.one("#ccn_step input[type=number]"), "0")
        tools.until(lambda: "step 0" in text("#ccn_winner_note") != before, "the first step")
        shown.js("document.querySelectorAll('#ccn_layers button')[6].click()")
        tools.until(lambda: "ChannelFusion" in text("#ccn_winner_note"), "the middle residual")
        severe = [e for e in shown.driver.get_log("browser") if e["level"] == "SEVERE"]
        assert not severe

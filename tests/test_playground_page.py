"""The playground's page: built, driven, served, and clicked in a browser.

Needs gradio, which `run.py test` installs. The browser's test needs selenium and Chromium too.
"""

import importlib.util
import io
import os
import re
import socket
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from demo.command_line import keep_to_this_machine
from demo.demo_model import load_pipeline
from demo.examples import bundled_examples, two_object_examples
from demo.page_run import OrderError, Studio, finished
from lib_ccn.settings import fields
from lib_ccn.webui.arguments import PAGE
from lib_ccn.webui.presets import PresetStore

keep_to_this_machine(os.environ)
pytest.importorskip("gradio", reason="gradio is not installed (requirements/playground.txt)")
page = importlib.import_module("demo.page")
controls = importlib.import_module("demo.page_controls")
views = importlib.import_module("demo.page_events")
Events = views.Events

ROOT = Path(__file__).parents[1]
CANCELLED = '<div class="ccn-said">Cancelled.</div>'
WINDOW = SimpleNamespace(session_hash="a window")
WORD = "#txt2img_cross_controlnet_foreground_word"


def browser_tools():
    """What the tests of the WebUIs' pages drive a browser with."""
    spec = importlib.util.spec_from_file_location("host_page", ROOT / "tests/hosts/page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def studio():
    return Studio(load_pipeline(several=True), ("outline", "regions", "outlines"))


@pytest.fixture
def events(studio):
    return Events(studio, bundled_examples())


@pytest.fixture(scope="module")
def made(studio, tmp_path_factory):
    start = page.Start(bundled_examples(), 3.0, "", finished())
    return page.build(studio, PresetStore(tmp_path_factory.mktemp("presets")), start)


@pytest.fixture(scope="module")
def url(made):
    url = page.serve(made, None, opens=False)
    yield url
    made.close()


def values(**changes):
    """The page's values in the order of the click."""
    example = bundled_examples()[0]
    pictures = [
        controls.editor_value(controls.shown_condition(c))
        for c in (example.foreground, example.background)
    ]
    given = {"prompt": example.prompt, "seed": 0, "steps": 2, "guidance": 3.0, "second": True}
    given.update(changes)
    method = {name: fields()[name].default for name in PAGE}
    method.update({"enabled": True, "foreground_word": example.word, "start_step": 1})
    return [
        *(given["prompt"], "", given["seed"], given["steps"], given["guidance"]),
        *(True, "outline", pictures[0]),
        *(given["second"], "regions", pictures[1]),
        *(False, "regions", None),
        *(given.get(name, method[name]) for name in PAGE),
    ]


def generate(events, window=WINDOW, outcome=None, **changes):
    """What a click on Generate gives, one after the other."""
    events.ask(window)
    return events.generate(window, outcome, lambda: values(**changes))


def shown(update):
    """What an update gives to each output, by name."""
    return dict(zip(("outcome", *Events.VIEWS), update, strict=True))


def said(updates):
    """What the status said, one after the other."""
    place = 1 + Events.VIEWS.index("status")
    return [update[place] for update in updates if isinstance(update[place], str)]


class TestEvents:
    def test_a_click_ends_with_both_pictures_and_their_inside(self, events):
        updates = list(generate(events))
        last = shown(updates[-1])
        assert last["plain"].size == last["fused"].size == (512, 512)
        assert last["inside"]["visible"]
        assert "star" in last["status"]
        assert any("Plain sum: step" in text for text in said(updates))
        assert any("Cross-ControlNet: step" in text for text in said(updates))
        mask, note, winner, legend, layers, _ = events.look(last["outcome"], 1, 2)
        assert mask.size == winner.size == (512, 512)
        assert "Step 1" in note
        assert "outline" in legend
        assert len(layers) == 7

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"second": False}, "Two ControlNets"),
            ({"steps": 0}, "Steps: 0 is not 1 to 100"),
            ({"steps": None}, "Steps: None is no number"),
            ({"seed": -5}, "Seed: -5 is not 0 to 4294967295"),
            ({"seed": "x"}, "is no number"),
            ({"guidance": 1e9}, "Guidance: 1000000000.0 is not 1 to 30"),
            ({"delta": 7}, "Delta (delta) = 7"),
            ({"foreground_unit": "2"}, "foreground_unit"),
            ({"mask_source": "image"}, "mask_image"),
        ],
    )
    def test_what_is_refused_is_said_in_words(self, events, changes, words):
        text = said(generate(events, **changes))[-1]
        assert words in text
        assert "ccn-wrong" in text
        assert "Traceback" not in text

    @pytest.mark.parametrize("changes", [{"seed": -5}, {"second": False}])
    @pytest.mark.parametrize("before", ["nothing", "the finished example", "an outcome"])
    def test_what_is_refused_wipes_nothing(self, events, changes, before):
        outcome = None
        if before == "an outcome":
            outcome = SimpleNamespace(plain=Image.new("RGB", (64, 64), "red"), fused=None)
        elif before == "the finished example":
            events = Events(events._studio, [], finished())
        *_, last = generate(events, outcome=outcome, **changes)
        picture = shown(last)["plain"]
        if before == "nothing":
            assert picture is None
        else:
            wanted = finished()[0] if outcome is None else outcome.plain
            assert np.array_equal(picture.resize((64, 64), 0), wanted)

    @pytest.mark.parametrize(("step", "layer"), [(None, 0), (-1, 0), (0, "x"), (99, 0), (0, 7.5)])
    def test_a_place_that_cannot_be_looked_at_is_said_in_words(self, events, step, layer, caplog):
        *_, last = generate(events)
        assert "ccn-wrong" in events.look(last[0], step, layer)[-1]
        assert not caplog.text

    def test_an_error_while_looking_is_said_in_words(self, events, monkeypatch):
        *_, last = generate(events)
        monkeypatch.setattr(views, "mask_view", lambda *_: 1 / 0)
        status = events.look(last[0], 0, 0)[-1]
        assert "Looking inside failed (ZeroDivisionError)" in status

    @pytest.mark.parametrize("values", [[], [None] * 3])
    def test_values_that_cannot_be_read_at_all_end_in_words(self, events, values):
        events.ask(WINDOW)
        *_, last = events.generate(WINDOW, None, lambda: values)
        assert "The generation failed" in shown(last)["status"]

    def test_an_unforeseen_error_is_said_in_words(self, events, studio, monkeypatch, caplog):
        def fail(*_):
            raise RuntimeError("out of <memory>\nmany more lines")

        monkeypatch.setattr(studio, "_make", fail)
        text = said(generate(events))[-1]
        assert "RuntimeError): out of &lt;memory&gt;</div>" in text
        assert "out of <memory>" in caplog.text

    def test_cancel_ends_the_generation_of_its_own_window(self, events):
        updates = generate(events, steps=40)
        next(updates)
        events.cancel(SimpleNamespace(session_hash="another"))
        next(updates)
        events.cancel(WINDOW)
        assert said(updates)[-1] == CANCELLED
        assert events.cancel(WINDOW) == page.gr.skip(), "nothing is left to be cancelled"

    def test_cancel_withdraws_clicks_that_wait_for_their_turn(self, events, studio, monkeypatch):
        first, second = generate(events), generate(events)
        assert events.cancel(WINDOW) == CANCELLED
        third = generate(events, seed=9)
        monkeypatch.setattr(studio, "make", lambda *_: pytest.fail("it was withdrawn"))
        for withdrawn in (first, second):
            assert said(withdrawn) == [], "the third one's status stays"
        monkeypatch.undo()
        *_, last = third
        assert last[0].order.seed == 9

    def test_another_windows_click_is_not_withdrawn(self, events):
        other = SimpleNamespace(session_hash="another")
        updates = generate(events, window=other)
        assert events.cancel(WINDOW) == page.gr.skip()
        assert list(updates)[-1][0].fused is not None

    def test_a_window_that_is_closed_ends_its_generation(self, events, studio):
        updates, waiting = generate(events, steps=60), generate(events)
        next(updates)
        events.forget(WINDOW)
        updates.close()
        assert said(waiting) == []
        other = list(generate(events, window=SimpleNamespace(session_hash="b")))
        assert other[-1][0].fused is not None

    def test_an_example_fills_the_page(self, events):
        example = bundled_examples()[4]
        prompt, seed, *rest, _ = events.example_values(4)
        (outline, regions, kept), nets, on, held = rest[:3], rest[3:6], rest[6:9], rest[9:]
        assert (prompt, seed) == (example.prompt, example.seed)
        assert np.asarray(outline["background"]).shape == (512, 512, 3)
        assert not np.array_equal(outline["background"], regions["background"])
        assert (nets, on) == (["outline", "regions", kept], [True, True, False])
        assert kept == page.gr.skip()
        assert held == [example.word, "", "auto", page.gr.skip(), page.gr.skip()]

    def test_an_example_of_two_objects_fills_it_too(self, studio):
        example = two_object_examples()[1]
        events = Events(studio, page.every_example())
        prompt, seed, *rest, _ = events.example_values(len(bundled_examples()) + 1)
        assert (prompt, seed) == (example.prompt, example.seed)
        assert [type(picture) for picture in rest[:3]] == [dict] * 3
        assert rest[3:9] == ["outlines", "outlines", "regions", True, True, True]
        *held, fold = rest[9:]
        assert held == ["", "0 star, 1 triangle", "auto", "layers (each unit its place)"]
        assert fold == page.gr.update(open=True), "the page's script counts what is there"


class TestReceived:
    def test_pictures_are_decoded_and_the_rest_is_left_to_its_reader(self, tmp_path):
        path = tmp_path / "grey.png"
        Image.new("RGB", (8, 8), "grey").save(path)
        editor = page.gr.ImageEditor(label="Condition 0", type="pil")
        sent = {"background": None, "layers": [], "composite": {"path": str(path)}}
        seed = page.gr.Number(0, minimum=0)
        picture, number = controls.received([editor, seed], [sent, -5])
        assert picture["composite"].size == (8, 8)
        assert number == -5

    @pytest.mark.parametrize("content", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n"])
    def test_what_is_no_picture_is_refused_by_its_label(self, content, tmp_path):
        path = tmp_path / "bad.png"
        path.write_bytes(content)
        editor = page.gr.ImageEditor(label="Condition 0", type="pil")
        sent = {"background": {"path": str(path)}, "layers": [], "composite": None}
        with pytest.raises(OrderError, match="Condition 0 cannot be used"):
            controls.received([editor], [sent])


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
        assert (ROOT / "demo/page.js").read_text("utf-8") in head
        assert head.count("</script>") == 1 + len(list((ROOT / "javascript").glob("*.js")))

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
        assert page.serve(made, port, opens=False) is None


@pytest.fixture(scope="module")
def tools():
    return browser_tools()


@pytest.fixture(scope="module")
def shown_page(tools, url, tmp_path_factory):
    """The page in a browser."""
    try:
        driver = tools.start_browser()
    except RuntimeError as reason:
        pytest.skip(f"{reason}")
    yield tools.Page(driver, url, tmp_path_factory.mktemp("screenshots"))
    driver.quit()


SCROLLS_INSIDE = """
return [...document.querySelectorAll('body *')].filter(element =>
    /auto|scroll/.test(getComputedStyle(element).overflowY) && element.clientHeight > 0
    && element.scrollHeight > element.clientHeight + 2).map(element => element.outerHTML);
"""
RIM = """
const coloured = element => getComputedStyle(element).backgroundColor !== 'rgba(0, 0, 0, 0)';
let below = arguments[0];
while (!coloured(below)) below = below.parentElement;
return [getComputedStyle(arguments[0].querySelector('div')).borderColor,
    getComputedStyle(below).backgroundColor];
"""
DROP = """
const [place, name, content] = arguments, dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([content], name, {type: 'image/png'}));
const drop = new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer});
place.dispatchEvent(drop);
"""


class TestBrowser:
    def open(self, tools, shown, width=1500, height=800):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        shown.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        shown.driver.get(shown.url)
        tools.until(lambda: shown.all("#ccn_condition_1 canvas"), "editors", 60)
        tools.until(lambda: shown.value(f"{WORD} textarea, {WORD} input") == "star", "the word", 60)
        shown.settle()

    def box(self, shown, selector):
        script = (
            "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.right, b.bottom]"
        )
        return shown.js(script, shown.one(selector))

    def pixels(self, shown, selector):
        picture = Image.open(io.BytesIO(shown.one(selector).screenshot_as_png)).convert("RGB")
        return np.asarray(picture.resize((64, 64))).astype(int)

    @pytest.mark.parametrize("width", [400, 1000, 1500])
    def test_the_first_sight(self, tools, shown_page, width):
        self.open(tools, shown_page, width)
        *_, bottom = self.box(shown_page, "#txt2img_generate")
        assert bottom < 450
        for name in ("plain", "fused"):
            left, top, right, end = self.box(shown_page, f"#ccn_{name} img")
            assert bottom < top < end <= 800
            assert 0 <= left < right <= width
        assert "made beforehand" in shown_page.text("#ccn_status")
        assert shown_page.js("return document.documentElement.scrollWidth") <= width
        assert shown_page.js(SCROLLS_INSIDE) == []

    def test_generate_and_the_status_stay_in_sight(self, tools, shown_page):
        self.open(tools, shown_page, 400)
        shown_page.js("window.scrollTo(0, 1500)")
        for selector in ("#txt2img_generate", "#ccn_status"):
            _, top, _, bottom = self.box(shown_page, selector)
            assert 0 <= top < bottom < 200

    def test_the_brushs_colour_has_a_visible_rim(self, tools, shown_page):
        self.open(tools, shown_page)
        rim, below = shown_page.js(RIM, shown_page.one("#ccn_condition_0 button[aria-label=Color]"))
        dark, light = (sum(map(int, re.findall(r"\d+", text)[:3])) for text in (rim, below))
        assert abs(dark - light) > 450

    def test_a_refused_seed_ends_in_words(self, tools, shown_page):
        self.open(tools, shown_page)
        shown_page.js(tools.SET_TEXT, shown_page.one("#ccn_seed input"), "-5")
        shown_page.click("#txt2img_generate")
        told = "Seed: -5 is not 0 to"
        tools.until(lambda: told in shown_page.text("#ccn_status"), "the refusal")
        assert shown_page.all("#ccn_plain img")

    @pytest.mark.parametrize("way", ["picked", "dropped"])
    def test_a_file_that_is_no_picture_wipes_nothing(self, tools, shown_page, way, tmp_path):
        self.open(tools, shown_page)
        place = "#ccn_condition_0"
        before = self.pixels(shown_page, f"{place} canvas")
        if way == "picked":
            file = tmp_path / f"{way}.png"
            file.write_text("this is no picture")
            shown_page.one(f"{place} input[type=file]").send_keys(str(file))
        else:
            zone = shown_page.one(f"{place} [data-testid=image]")
            shown_page.js(DROP, zone, f"{way}.png", "this is no picture")
        told = f"{way}.png is no picture"
        tools.until(lambda: told in shown_page.text("#ccn_status"), "the refusal")
        shown_page.settle()
        assert np.abs(self.pixels(shown_page, f"{place} canvas") - before).mean() < 5

    def test_a_picture_is_taken(self, tools, shown_page, tmp_path):
        self.open(tools, shown_page)
        place = "#ccn_condition_0"
        before = self.pixels(shown_page, f"{place} canvas")
        Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
        shown_page.one(f"{place} input[type=file]").send_keys(str(tmp_path / "green.png"))

        def differs():
            return np.abs(self.pixels(shown_page, f"{place} canvas") - before).mean() > 20

        tools.until(differs, "the picture")

    def test_cancel_withdraws_a_click_behind_another_windows(
        self, tools, shown_page, studio, monkeypatch
    ):
        own, made, go = studio.make, [], threading.Event()

        def make(order, *more):
            made.append(order)
            go.wait(120)
            return own(order, *more)

        monkeypatch.setattr(studio, "make", make)
        driver = shown_page.driver
        first = driver.current_window_handle
        self.open(tools, shown_page)
        shown_page.js(tools.SET_TEXT, shown_page.one("#ccn_steps input[type=number]"), "2")
        shown_page.click("#txt2img_generate")
        tools.until(lambda: made, "the first window's turn")
        try:
            driver.switch_to.new_window("tab")
            script = {"source": tools.UNDER_WAY}  # `start_browser` gave it to the first tab alone
            driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
            self.open(tools, shown_page)
            shown_page.click("#txt2img_generate")
            tools.until(lambda: "Waiting" in shown_page.text("#ccn_status"), "the wait")
            shown_page.settle()
            shown_page.click("#ccn_cancel")
            tools.until(lambda: "Cancelled." in shown_page.text("#ccn_status"), "the end of it")
            go.set()
            driver.switch_to.window(first)
            tools.until(lambda: "star" in shown_page.text("#ccn_status"), "the summary", 120)
            driver.switch_to.window(driver.window_handles[-1])
            shown_page.settle()
            assert "Cancelled." in shown_page.text("#ccn_status")
            assert len(made) == 1
        finally:
            go.set()
            driver.switch_to.window(driver.window_handles[-1])
            driver.close()
            driver.switch_to.window(first)

    def test_click_through(self, tools, shown_page):
        self.open(tools, shown_page)
        self.click_through(tools, shown_page)

    def click_through(self, tools, shown):
        def text(selector):
            return shown.js("return arguments[0].textContent", shown.one(selector))

        def value(selector):
            return shown.js("return arguments[0].value", shown.one(selector))

        field = f"{WORD} textarea, {WORD} input"
        tools.until(lambda: shown.all(".ccn-chip"), "chips of the first example's words", 60)
        assert text(".ccn-badge") == "2 units fused + injection"
        shown.click(".ccn-chip")
        tools.until(lambda: value(field) == "red star", "a phrase, after a click on a chip")
        steps = "#ccn_steps input[type=number]"
        shown.js(tools.SET_TEXT, shown.one(steps), "3")
        shown.click("#txt2img_generate")
        tools.until(lambda: "red star" in text("#ccn_status"), "the summary", 120)
        for name in ("plain", "fused", "mask", "winner"):
            tools.until(lambda name=name: shown.all(f"#ccn_{name} img"), name)
        before = text("#ccn_winner_note")
        shown.js(tools.SET_TEXT, shown.one("#ccn_step input[type=number]"), "0")
        tools.until(lambda: "step 0" in text("#ccn_winner_note") != before, "the first step")
        shown.js("document.querySelectorAll('#ccn_layers button')[6].click()")
        tools.until(lambda: "ChannelFusion" in text("#ccn_winner_note"), "the middle residual")
        severe = [e for e in shown.driver.get_log("browser") if e["level"] == "SEVERE"]
        assert not severe

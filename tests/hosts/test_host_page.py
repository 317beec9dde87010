"""The page in a browser: what a person sees and clicks."""

import base64
import io
import re
import shutil
import zipfile

import numpy as np
import pytest
from hosts.accordion import (
    ENTER,
    PLACE,
    TAB,
    assert_legible,
    assert_low,
    fill,
    is_strip,
    state,
    unit_field,
)
from hosts.cases import METHOD, blocks, encoded, using
from hosts.page import until
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lib_ccn.settings import fields

pytestmark = [pytest.mark.page, pytest.mark.timeout(1200)]

PAPER = "PixFusion + ChannelFusion (the paper)"
TABS = ("txt2img", "img2img")
SHOWN = {
    "enabled": True,
    "fusion": "PixFusion",
    "delta": "0.35",
    "inject": True,
    "start_step": "1",
    "start_layer": "2",
    "foreground_unit": "1",
    "background_unit": "0",
    "foreground_word": "star",
    "mask_source": "the word's attention",
    "mask_threshold": "0.45",
    "mask_reduction": "4",
    "show_mask": True,
}
GIVEN = {
    "fusion": "pix",
    "delta": 0.35,
    "start_step": 1,
    "start_layer": 2,
    "foreground_unit": 1,
    "background_unit": 0,
    "foreground_word": "star",
    "mask_threshold": 0.45,
    "show_mask": True,
}


@pytest.fixture(scope="module")
def made(host):
    """A picture made over the API, whose text holds our settings and ControlNet's units."""
    units = host.requests.two()
    return host.generate(using(host.requests.body(units, width=128, height=128), GIVEN))


@pytest.fixture(scope="module")
def three(host):
    """The same with three units."""
    units = [*host.requests.two(), host.requests.unit("c", 3)]
    return host.generate(using(host.requests.body(units, width=128, height=128), GIVEN))


def settings(page, tab="txt2img"):
    """What the page shows; a unit without its model's name."""
    found = {name: page.setting(tab, name) for name in SHOWN}
    for name in ("foreground_unit", "background_unit"):
        found[name] = found[name].split(":")[0]
    return found


@pytest.mark.parametrize("tab", TABS)
def test_accordion(page, tab):
    page.tab(tab)
    place = f"#{tab}_cross_controlnet"
    assert "Cross-ControlNet" in page.text(place)
    assert page.setting(tab, "enabled") is False
    page.js("arguments[0].click()", page.one(f"{place} .label-wrap"))
    for name in fields():
        if name in ("enabled", "strict"):
            continue
        assert len(page.all(f"{place}_{name}")) == 1, name
    assert page.one(f"{place}_show_mask").is_displayed()
    assert not page.one(f"{place}_fusion").is_displayed()
    page.reveal(f"{place}_fusion")
    for name in ("fusion", "delta", "foreground_unit", "foreground_word", "start_step"):
        assert page.one(f"{place}_{name}").is_displayed(), name
        assert fields()[name].label in page.text(f"{place}_{name}")
    assert not page.one(f"{place}_mask_image").is_displayed()
    page.js("arguments[0].scrollIntoView()", page.one(place))
    page.shoot(f"accordion-{tab}", place)


def test_generation_with_two_units(page, host, made, pictures):
    fill(page, made, pictures)
    assert settings(page) == SHOWN
    page.reveal(f"{PLACE}_show_mask")
    badge = until(lambda: page.all(f"{PLACE} .ccn-badge"), "a badge")[0]
    until(lambda: "2 units fused" in badge.text, "a badge with 2 units")
    assert "Injection: the units behind" in badge.get_property("title")
    page.shoot("ready", PLACE)
    page.generate("txt2img")
    info = page.text("#html_info_txt2img")
    assert "CCN fusion: pix" in info
    assert "CCN note" not in info, info
    shapes = page.shapes("txt2img")
    assert shapes[0] == 1, "the picture comes first"
    assert sum(map(is_strip, shapes)) == 1
    page.js("window.scrollTo(0, 0)")
    page.shoot("generated")
    page.driver.set_window_size(1500, 2600)
    page.shoot("page")


def test_word_picker(page, made, pictures):
    fill(page, made, pictures)
    page.write("#txt2img_prompt textarea", "a red star above the sea")
    page.reveal(f"{PLACE}_show_mask")
    chips = until(lambda: page.all(f"{PLACE} .ccn-chip"), "chips")
    texts = [chip.text for chip in chips]
    assert {"red", "star", "sea"} <= set(texts)
    page.click(f"{PLACE} .ccn-chip:nth-of-type({texts.index('red') + 1})")
    assert page.setting("txt2img", "foreground_word") == "red star"
    until(lambda: "in front: red star" in state(page), "the phrase")
    page.shoot("word-picker", PLACE)
    page.write(f"{PLACE} .ccn-field", "sea")
    assert page.setting("txt2img", "foreground_word") == "sea"
    until(lambda: "in front: sea" in state(page), "a word that was typed")


def put(page, name, text):
    """Type into one of our dropdowns that take any text."""
    page.js(
        "crossControlNet.page.setChoice(document, arguments[0], arguments[1])",
        f"{PLACE[1:]}_{name}",
        text,
    )


def test_the_state_in_words(page, made, pictures):
    def says(*parts):
        until(lambda: all(part in state(page) for part in parts), f"{parts}, but {state(page)}")

    page.reveal(f"{PLACE}_show_mask")
    first = page.first_unit("txt2img")
    one, two, three = (f"nit {number}" for number in range(first, first + 3))
    says("No ControlNet unit is on")
    assert "needs 2 units" in page.text(f"{PLACE} .ccn-badge")
    fill(page, made, pictures)
    says(f"U{two} (ccn-random-b) is in front: star.", f"U{one} (ccn-random-a) is behind.")
    prompt = page.value("#txt2img_prompt textarea")
    page.write("#txt2img_prompt textarea", "")
    says("The prompt is empty")
    page.write("#txt2img_prompt textarea", "a blue boat")
    says("“star” is not in the prompt")
    page.write("#txt2img_prompt textarea", prompt)
    put(page, "background_unit", "1")
    says(f"U{two} is chosen to be both in front and behind")
    put(page, "background_unit", "2")
    says(f"U{three} is chosen to be behind but is not on")
    put(page, "background_unit", "auto")
    put(page, "start_step", "30")
    says("it would start at step 30, and the last is 1")
    put(page, "start_step", "auto")
    page.choose(f"{PLACE}_mask_source", "a painted mask")
    says("The painted mask is missing")
    page.choose(f"{PLACE}_mask_source", "the word's attention")
    says("is in front: star.")
    page.js("arguments[0].click()", unit_field(page, 1, "enable_checkbox"))
    says(f"Only u{one} (ccn-random-a) can be fused")
    page.js("document.querySelector('#txt2img_controlnet').remove()")
    says("There is no ControlNet on this page")


def test_a_unit_is_put_in_front_by_keyboard(page, made, pictures):
    fill(page, made, pictures)
    page.reveal(f"{PLACE}_show_mask")
    one = page.first_unit("txt2img")
    until(lambda: f"Unit {one + 1} (ccn-random-b) is in front" in state(page), "the second")
    button = page.one(f"{PLACE} .ccn-role")
    button.send_keys(ENTER)
    until(lambda: f"Unit {one} (ccn-random-a) is in front" in state(page), "the first in front")
    until(lambda: page.setting("txt2img", "foreground_unit").startswith("0: ccn"), "its name")
    button.send_keys(TAB)
    style = page.js("return getComputedStyle(document.activeElement).outlineStyle")
    assert page.js("return document.activeElement.textContent") == "behind"
    assert style != "none", "the focus can be seen"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_accordion_is_low_and_can_be_read(page, three, pictures, theme):
    page.open(theme)
    page.click(f"{PLACE}-checkbox input")
    page.reveal(f"{PLACE}_show_mask")
    until(lambda: "No ControlNet unit is on" in state(page), "what is missing")
    assert page.all(f"{PLACE} .ccn-badge.ccn-warns")
    assert_legible(page)
    page.shoot(f"missing-{theme}", PLACE)
    fill(page, three, [*pictures, pictures[0]])
    page.write("#txt2img_prompt textarea", "a red moon above the calm sea, at night")
    page.reveal(f"{PLACE}_show_mask")
    until(lambda: "“star” is not in the prompt" in state(page), "what is missing")
    assert page.all(f"{PLACE} .ccn-badge.ccn-warns")
    assert_legible(page)
    page.shoot(f"absent-{theme}", PLACE)
    page.write("#txt2img_prompt textarea", "a red star above the calm sea, at night")
    until(lambda: "in front: star" in state(page), "the state")
    assert len(page.all(f"{PLACE} .ccn-unit")) == 3
    assert not page.all(f"{PLACE} .ccn-badge.ccn-warns")
    assert_low(page)
    page.shoot(f"open-{theme}", PLACE)
    page.reveal(f"{PLACE}_fusion")
    page.shoot(f"advanced-{theme}", PLACE)
    assert_legible(page)
    page.driver.set_window_size(400, 1800)
    page.settle()
    wide = "return arguments[0].scrollWidth - arguments[0].clientWidth"
    assert page.js(wide, page.one(PLACE)) <= 1
    page.shoot(f"narrow-{theme}", PLACE)


@pytest.mark.parametrize("tab", TABS)
def test_it_stands_directly_below_controlnet(page, tab):
    titles = page.js(
        """
        const isInner = place => {
            while ((place = place.parentElement)) {
                if (place.querySelector(':scope > .label-wrap')) return true;
            }
            return false;
        };
        const headers = document.querySelectorAll(`#${arguments[0]}_script_container .label-wrap`);
        return [...headers].filter(header => !isInner(header.parentElement))
            .map(header => header.querySelector('span').textContent.trim());
        """,
        tab,
    )
    place = titles.index("Cross-ControlNet")
    assert re.match(r"ControlNet (v|Integrated)", titles[place - 1]), titles


@pytest.mark.parametrize("tab", TABS)
def test_paste_from_png_info(page, made, tmp_path, tab):
    words = PngInfo()
    words.add_text("parameters", made.infotexts[0])
    path = tmp_path / "made.png"
    Image.fromarray(made.pictures[0]).save(path, pnginfo=words)
    page.tab("PNG Info")
    page.upload("#pnginfo_image", path)
    until(lambda: "CCN delta: 0.35" in page.text("#tab_pnginfo"), "the picture's text")
    page.click(f"#tab_pnginfo #{tab}_tab")
    until(lambda: page.setting(tab, "enabled"), "a pasted setting")
    until(lambda: settings(page, tab) == SHOWN, f"{SHOWN}, but {settings(page, tab)}")
    assert page.setting(tab, "enabled") is True


def test_picture_without_the_method_switches_it_off(page, made, first):
    page.paste("txt2img", made.infotexts[0])
    assert page.setting("txt2img", "enabled") is True
    page.paste("txt2img", first.infotexts[0])
    assert page.setting("txt2img", "enabled") is False


def test_preset_saved_loaded_and_deleted(page, host, made):
    page.paste("txt2img", made.infotexts[0])
    page.reveal(f"{PLACE}_preset_name")
    page.write(f"{PLACE}_preset_name :is(textarea, input)", "My own / Ünique")
    until(lambda: "changed" in page.text(f"{PLACE}_preset_changed"), "that it differs")
    page.click(f"{PLACE}_preset_save")
    until(lambda: "Saved" in page.text(f"{PLACE}_preset_message"), "a message")
    page.choose(f"{PLACE}_preset", "Paper (SD 1.5)")
    until(lambda: page.setting("txt2img", "fusion") == PAPER, "the paper's settings")
    page.open()
    page.reveal(f"{PLACE}_preset")
    until(lambda: page.value(f"{PLACE}_preset input") == "Paper (SD 1.5)", "the one that fits")
    assert "changed" not in page.text(f"{PLACE}_preset_changed")
    page.choose(f"{PLACE}_preset", "My own / Ünique")
    until(lambda: page.setting("txt2img", "delta") == "0.35", "the saved settings")
    assert page.setting("txt2img", "fusion") == "PixFusion"
    assert page.setting("txt2img", "mask_threshold") == "0.45"
    listed = str(host.client.call("/cross-controlnet/v1/presets"))
    assert "My own / Ünique" in listed
    page.click(f"{PLACE}_preset_delete")
    until(lambda: "Click Delete again" in page.text(f"{PLACE}_preset_message"), "a question")
    assert "My own / Ünique" in str(host.client.call("/cross-controlnet/v1/presets"))
    page.click(f"{PLACE}_preset_delete")
    until(lambda: "Deleted" in page.text(f"{PLACE}_preset_message"), "a message")
    assert "My own" not in str(host.client.call("/cross-controlnet/v1/presets"))


def test_mask_editor_shows_for_an_image_only(page):
    page.reveal(f"{PLACE}_mask_source")
    assert not page.one(f"{PLACE}_mask_image").is_displayed()
    page.choose(f"{PLACE}_mask_source", "a painted mask")
    until(lambda: page.one(f"{PLACE}_mask_image").is_displayed(), "a mask editor")
    page.choose(f"{PLACE}_mask_source", "the word's attention")
    until(lambda: not page.one(f"{PLACE}_mask_image").is_displayed(), "no mask editor")


def test_grid_over_delta(page, host, made, pictures):
    fill(page, made, pictures)
    page.choose("#script_list", "X/Y/Z plot")
    page.choose("#script_txt2img_xyz_plot_x_type", "[CCN] Delta")
    page.write("#script_txt2img_xyz_plot_x_values :is(textarea, input)", "0, 0.5, 1")
    start = host.server.mark()
    page.generate("txt2img")
    page.js("arguments[0].scrollIntoView()", page.one("#txt2img_gallery"))
    page.shoot("grid")
    # The text beside a grid is that of its first cell.
    assert re.search(r"CCN delta: 0(\.0)?,", page.text("#html_info_txt2img"))
    assert "plot will create 3 images" in host.server.log(start)


@pytest.mark.parametrize("button", ["save", "save_zip"])
def test_mask_strip_is_saved_with_its_pictures_text(page, made, pictures, installation, button):
    folder = installation.saved
    shutil.rmtree(folder, ignore_errors=True)
    fill(page, made, pictures)
    page.generate("txt2img")
    strip = next(i for i, shape in enumerate(page.shapes("txt2img")) if is_strip(shape))
    page.js("arguments[0].click()", page.all("#txt2img_gallery .thumbnails > button")[strip])
    page.settle()
    page.click(f"#{button}_txt2img")
    until(lambda: "Saved: " in page.text("#html_log_txt2img"), "a saved picture")
    (saved,) = folder.rglob("*.png")
    with Image.open(saved) as picture:
        assert is_strip(picture.width / picture.height)
        assert "CCN delta: 0.35" in picture.info["parameters"]
    archives = [zipfile.ZipFile(path).namelist() for path in folder.rglob("*.zip")]
    assert archives == ([[saved.relative_to(folder).as_posix()]] if button == "save_zip" else [])


def test_api_and_page_agree(page, host, made, pictures):
    """The picture that the page makes is the one that the API makes of the same settings."""
    fill(page, made, pictures)
    page.generate("txt2img")
    fetch = """
    const [source, done] = arguments;
    fetch(source).then(answer => answer.arrayBuffer()).then(data => done(
        btoa(String.fromCharCode(...new Uint8Array(data)))));
    """
    data = page.driver.execute_async_script(fetch, page.pictures("txt2img")[0])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    units = [
        host.requests.unit("a", image=encoded(blocks(1, 128))),
        host.requests.unit("b", image=encoded(blocks(2, 128))),
    ]
    body = host.requests.body(units, width=128, height=128)
    again = host.generate(using(body, {**METHOD, **GIVEN, "show_mask": False}))
    apart = np.abs(shown.astype(float) - again.pictures[0]).mean()
    assert np.array_equal(shown, again.pictures[0]), f"{apart:.3f} grey levels apart"

"""The page in a browser: what a person sees and clicks."""

import base64
import io
import re
import shutil
import zipfile

import numpy as np
import pytest
from hosts.cases import METHOD, blocks, encoded, using
from hosts.page import Page, start_browser, until
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lib_ccn.settings import fields

pytestmark = [pytest.mark.page, pytest.mark.timeout(1200)]

TABS = ("txt2img", "img2img")
PLACE = "#txt2img_cross_controlnet"
SHOWN = {
    "enabled": True,
    "fusion": "pix",
    "delta": "0.35",
    "inject": True,
    "start_step": "1",
    "start_layer": "2",
    "foreground_unit": "1",
    "background_unit": "0",
    "foreground_word": "star",
    "mask_source": "word",
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
def browser():
    try:
        driver = start_browser()
    except RuntimeError as reason:
        pytest.skip(str(reason))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def screenshots(installation):
    folder = installation.work / "screenshots"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def page(browser, host, screenshots):
    """The page, loaded anew; none of our scripts may have complained when the test ends."""
    page = Page(browser, host.server.url, screenshots)
    page.open()
    yield page
    assert page.errors() == []


@pytest.fixture(scope="module")
def made(host):
    """A picture made over the API, whose text holds our settings and ControlNet's units."""
    units = host.requests.two()
    return host.generate(using(host.requests.body(units, width=128, height=128), GIVEN))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    for seed in (1, 2):
        blocks(seed, 128).save(folder / f"{seed}.png")
    return [folder / "1.png", folder / "2.png"]


def settings(page, tab="txt2img"):
    """What the page shows; a unit without its model's name."""
    found = {name: page.setting(tab, name) for name in SHOWN}
    for name in ("foreground_unit", "background_unit"):
        found[name] = found[name].split(":")[0]
    return found


def fill(page, made, pictures):
    """Paste a picture's settings, and give each ControlNet unit its condition."""
    page.paste("txt2img", made.infotexts[0])
    for number, path in enumerate(pictures):
        page.upload(f"#txt2img_controlnet_ControlNet-{number}_input_image", path)


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
    for name in ("fusion", "delta", "foreground_word", "start_step"):
        assert page.one(f"{place}_{name}").is_displayed(), name
        assert fields()[name].label in page.text(f"{place}_{name}")
    assert not page.one(f"{place}_mask_image").is_displayed()
    page.js("arguments[0].scrollIntoView()", page.one(place))
    page.shoot(f"accordion-{tab}", place)


def test_generation_with_two_units(page, host, made, pictures):
    fill(page, made, pictures)
    assert settings(page) == SHOWN
    page.reveal(f"{PLACE}_fusion")
    badge = until(lambda: page.all(f"{PLACE} .ccn-badge"), "a badge")[0]
    until(lambda: "2 units fused" in badge.text, "a badge with 2 units")
    page.shoot("ready", PLACE)
    page.generate("txt2img")
    info = page.text("#html_info_txt2img")
    assert "CCN fusion: pix" in info
    assert "CCN note" not in info, info
    shapes = page.shapes("txt2img")
    assert shapes[0] == 1, "the picture comes first"
    assert shapes.count(3) == 1, "one strip of original, mask and overlay"
    page.js("window.scrollTo(0, 0)")
    page.shoot("generated")
    page.driver.set_window_size(1500, 2600)
    page.shoot("page")


def test_word_picker(page):
    page.write("#txt2img_prompt textarea", "a red star above the sea")
    page.reveal(f"{PLACE}_foreground_word")
    word = f"{PLACE}_foreground_word"
    chips = until(lambda: page.all(f"{word} .ccn-chip"), "chips")
    texts = [chip.text for chip in chips]
    assert {"red", "star", "sea"} <= set(texts)
    chips[texts.index("star")].click()
    assert page.setting("txt2img", "foreground_word") == "star"
    chips[texts.index("red")].click()
    assert page.setting("txt2img", "foreground_word") == "red star"
    page.shoot("word-picker", word)
    page.write("#txt2img_prompt textarea", "a blue boat on the sea")
    until(lambda: "not in the prompt" in page.text(word), "a warning")


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
    page.click(f"{PLACE}_preset_save")
    until(lambda: "Saved" in page.text(f"{PLACE}_preset_message"), "a message")
    page.choose(f"{PLACE}_preset", "Paper (SD 1.5)")
    until(lambda: page.setting("txt2img", "fusion") == "pix+channel", "the paper's settings")
    page.open()
    page.reveal(f"{PLACE}_preset")
    page.choose(f"{PLACE}_preset", "My own / Ünique")
    until(lambda: page.setting("txt2img", "delta") == "0.35", "the saved settings")
    assert page.setting("txt2img", "fusion") == "pix"
    assert page.setting("txt2img", "mask_threshold") == "0.45"
    listed = str(host.client.call("/cross-controlnet/v1/presets"))
    assert "My own / Ünique" in listed
    page.click(f"{PLACE}_preset_delete")
    until(lambda: "Deleted" in page.text(f"{PLACE}_preset_message"), "a message")
    assert "My own" not in str(host.client.call("/cross-controlnet/v1/presets"))


def test_mask_editor_shows_for_an_image_only(page):
    page.reveal(f"{PLACE}_mask_source")
    assert not page.one(f"{PLACE}_mask_image").is_displayed()
    page.choose(f"{PLACE}_mask_source", "image")
    until(lambda: page.one(f"{PLACE}_mask_image").is_displayed(), "a mask editor")
    page.choose(f"{PLACE}_mask_source", "word")
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
    folder = installation.work / "log" / "images"
    shutil.rmtree(folder, ignore_errors=True)
    fill(page, made, pictures)
    page.generate("txt2img")
    strip = page.shapes("txt2img").index(3)
    page.js("arguments[0].click()", page.all("#txt2img_gallery .thumbnails > button")[strip])
    page.settle()
    page.click(f"#{button}_txt2img")
    until(lambda: "Saved: " in page.text("#html_log_txt2img"), "a saved picture")
    (saved,) = folder.rglob("*.png")
    with Image.open(saved) as picture:
        assert picture.width == 3 * picture.height
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

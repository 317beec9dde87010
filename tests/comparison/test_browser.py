"""The page in a browser, from a file: its own script runs, and it fits."""

import shutil

import pytest

from comparison.test_comparison import run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver")


@pytest.fixture(params=[1400, 400])
def browser(request, server, tmp_path):
    """A comparison's page, so many pixels wide."""
    run(server, tmp_path, "--pairs", "standing-room,balloon-hills")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(word)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    size = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    try:
        made.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        made.get((tmp_path / "compare.html").as_uri())
        yield made
        assert made.get_log("browser") == []
    finally:
        made.quit()


def test_it_fits_and_every_picture_shows(browser):
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width == browser.execute_script("return document.documentElement.clientWidth")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('figure img')].map((i) => i.naturalWidth)"
    )
    assert len(shown) == 2 * (2 + 3)
    assert all(shown)
    tops = browser.execute_script(
        "return [...document.querySelectorAll('.row img')].slice(0, 3)"
        ".map((i) => Math.round(i.getBoundingClientRect().top))"
    )
    assert len(set(tops)) == 1, "side by side"


def test_a_judgement_is_counted_in_the_text(browser):
    text = browser.find_element("css selector", "textarea")
    assert "Judged by eye: nothing yet" in text.get_property("value")
    radios = browser.find_elements("css selector", "input[value='Cross-ControlNet']")
    for radio in radios:
        browser.execute_script("arguments[0].click()", radio)
    judged = text.get_property("value")
    assert "best of each row: Cross-ControlNet 2 (of 2 rows)" in judged
    assert "nothing yet" not in judged
    other = browser.find_element("css selector", "input[value='no difference']")
    browser.execute_script("arguments[0].click()", other)
    assert "no difference 1, Cross-ControlNet 1" in text.get_property("value")


def test_a_picture_enlarges_and_goes_again(browser):
    dialog = browser.find_element("css selector", "dialog")
    assert not dialog.is_displayed()
    small = browser.find_element("css selector", ".row .zoom img")
    browser.execute_script("arguments[0].click()", small)
    assert dialog.is_displayed()
    large = dialog.find_element("css selector", "img")
    assert large.get_property("src") == small.get_property("src")
    dialog.click()
    assert not dialog.is_displayed()

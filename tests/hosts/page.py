"""The WebUI's page in headless Chromium, by selenium; for gradio 3.41 and 4.40 alike."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

WINDOW = (1500, 1800)
NO_BROWSER = "no Chromium with chromedriver on the path"

# Values are read and set as the page's own scripts do it: by element and event.
SET_TEXT = """
const [element, text] = arguments;
const kind = element.tagName === 'TEXTAREA' ? HTMLTextAreaElement : HTMLInputElement;
Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(element, text);
for (const name of ['input', 'change', 'blur']) {
    element.dispatchEvent(new Event(name, {bubbles: true}));
}
"""
# Opens every closed accordion that the element lies in, so that it can be seen and clicked.
OPEN_AROUND = """
for (let place = arguments[0]; place; place = place.parentElement) {
    const header = place.parentElement?.querySelector(':scope > .label-wrap');
    if (header && header !== place && !header.classList.contains('open')) header.click();
}
"""
# The least contrast of the visible texts inside an element, and of what empty fields show, by the
# WCAG's formula, and whose it is. Buttons that gradio paints in two colours are left out.
LEAST_CONTRAST = """
const channels = text => {
    const found = (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    return found.length > 3 ? found : [...found, 1];
};
const over = (upper, lower) => lower.map((value, i) => value + upper[3] * (upper[i] - value));
const luminance = colour => colour.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
    const layers = [];
    for (let place = element; place; place = place.parentElement) {
        layers.push(channels(getComputedStyle(place).backgroundColor));
    }
    return layers.reverse().reduce((lower, upper) => over(upper, lower), [255, 255, 255]);
};
let least = [Infinity, ''];
const compare = (text, style, element) => {
    const ground = behind(element);
    const [red, green, blue, alpha] = channels(style.color);
    const colour = over([red, green, blue, alpha * style.opacity], ground);
    const [one, two] = [colour, ground].map(luminance);
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < least[0]) least = [ratio, text];
};
const walker = document.createTreeWalker(arguments[0], NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    const painted = element.closest('button:not([class*=ccn]):not(.label-wrap)');
    if (!text || painted || !element.getClientRects().length) continue;
    compare(text, getComputedStyle(element), element);
}
for (const field of arguments[0].querySelectorAll('input, textarea')) {
    if (!field.placeholder || field.value || !field.getClientRects().length) continue;
    compare(field.placeholder, getComputedStyle(field, '::placeholder'), field);
}
return least;
"""
# Keeps in window.underWay what the page asks the WebUI and has no answer to: gradio's events are
# fetched, or have a socket (3) or a stream (4) while they run. Its heartbeat stays open.
UNDER_WAY = """
window.underWay = new Set();
const begin = address => {
    const call = {address: String(address?.url ?? address)};
    if (!call.address.includes('heartbeat')) window.underWay.add(call);
    return () => window.underWay.delete(call);
};
const fetched = window.fetch;
window.fetch = (...given) => {
    const end = begin(given[0]);
    const answer = fetched(...given);
    answer.then(end, end);
    return answer;
};
window.WebSocket = class extends WebSocket {
    constructor(...given) {
        super(...given);
        this.addEventListener('close', begin(given[0]));
    }
};
window.EventSource = class extends EventSource {
    constructor(...given) {
        super(...given);
        this.end = begin(given[0]);
    }
    close() {
        this.end();
        super.close();
    }
};
"""


class PageError(AssertionError):
    """The page is not as the test expects it."""


def until(ask: Callable[[], Result], what: str, seconds: float = 30) -> Result:
    """Ask until the answer is true; raises PageError after the time."""
    deadline = time.monotonic() + seconds
    while True:
        found = ask()
        if found:
            return found
        if time.monotonic() > deadline:
            raise PageError(f"after {seconds} s there is still not {what}")
        time.sleep(0.25)


def start_browser() -> Any:
    """Start headless Chromium; raises RuntimeError with the reason when there is none."""
    try:
        from selenium import webdriver
    except ImportError:
        raise RuntimeError("selenium is not installed (requirements/page.txt)") from None
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        raise RuntimeError(NO_BROWSER)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # Every address but the WebUI's own fails at once: no font or script is fetched from elsewhere.
    hosts = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", hosts):
        options.add_argument(flag)
    options.add_argument(f"--window-size={WINDOW[0]},{WINDOW[1]}")
    options.add_argument("--disable-dev-shm-usage")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": UNDER_WAY})
    return chrome


class Page:
    """The page of one WebUI."""

    def __init__(self, driver: Any, url: str, screenshots: Path) -> None:
        self.driver = driver
        self.url = url
        self.screenshots = screenshots

    def open(self, theme: str = "light") -> None:
        """Load the page anew, and wait until the WebUI's own scripts have run."""
        self.driver.get(f"{self.url}/?__theme={theme}")
        until(lambda: self.all("#txt2img_generate"), "a page", 120)
        until(lambda: self.all("#txt2img_cross_controlnet"), "our accordion", 60)
        until(lambda: self.js("return typeof opts === 'object' && Boolean(opts)"), "options", 60)
        self.settle()

    def settle(self, quiet: float = 1.0) -> None:
        """Wait until the page has asked the WebUI for nothing for so many seconds."""
        since = [time.monotonic()]

        def is_quiet() -> bool:
            if self.js("return window.underWay.size") > 0:
                since[0] = time.monotonic()
            return time.monotonic() - since[0] >= quiet

        try:
            until(is_quiet, "a page at rest", 120)
        except PageError as error:
            calls = self.js("return [...window.underWay].map(call => call.address)")
            raise PageError(f"{error}; under way: {calls}") from None

    def js(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        """Every element that the selector finds."""
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        """The first element; raises PageError when there is none."""
        found = self.all(selector)
        if not found:
            raise PageError(f"nothing on the page is {selector}")
        return found[0]

    def first_unit(self, tab: str) -> int:
        """What ControlNet's tabs count from: 0, or 1 in Forge Classic and Forge Neo."""
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
        texts = self.js(script, f"#{tab}_script_container button")
        found = [re.match(r"\s*ControlNet Unit (\d+)", text) for text in texts]
        return min((int(number[1]) for number in found if number), default=0)

    def click(self, selector: str) -> None:
        """Click, whatever lies above the element."""
        self.js("arguments[0].click()", self.one(selector))

    def tab(self, label: str) -> None:
        """Open one of the WebUI's main tabs."""
        for button in self.all("#tabs > .tab-nav button, #tabs .tab-container button"):
            if self.js("return arguments[0].textContent", button).strip().lower() == label.lower():
                self.js("arguments[0].click()", button)
                time.sleep(0.5)
                return
        raise PageError(f"no tab {label}")

    def reveal(self, selector: str) -> None:
        """Open what the element is folded into, and scroll to it."""
        element = self.one(selector)
        self.js(OPEN_AROUND, element)
        time.sleep(0.5)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)

    def write(self, selector: str, text: str) -> None:
        """Put text into a text field."""
        self.js(SET_TEXT, self.one(selector), text)
        time.sleep(0.5)

    def upload(self, selector: str, path: Path) -> None:
        """Give a file to the file input inside an element."""
        self.one(f"{selector} input[type=file]").send_keys(str(path))
        self.settle()

    def paste(self, tab: str, infotext: str) -> None:
        """Read generation parameters from the prompt field, with the button for that."""
        self.write(f"#{tab}_prompt textarea", infotext)
        # Forge Neo keeps the button shut while there is a negative prompt that it would replace.
        self.write(f"#{tab}_neg_prompt textarea", "")
        button = self.one(f"#{tab}_tools #paste")
        until(button.is_enabled, "a paste button to click")
        self.click(f"#{tab}_tools #paste")
        self.settle()
        prompt, negative = infotext.splitlines()[:2]
        if self.value(f"#{tab}_prompt textarea") == infotext:  # Forge Neo leaves both prompts
            self.write(f"#{tab}_prompt textarea", prompt)
            self.write(f"#{tab}_neg_prompt textarea", negative.removeprefix("Negative prompt: "))
        until(lambda: self.value(f"#{tab}_prompt textarea") == prompt, "a pasted prompt")
        self.settle()

    def value(self, selector: str) -> str:
        """A field's text."""
        return str(self.one(selector).get_property("value"))

    def setting(self, tab: str, name: str) -> Any:
        """What our control of this setting shows: a bool or text."""
        place = f"#{tab}_cross_controlnet"
        if name == "enabled":
            return self.one(f"{place}-checkbox input").is_selected()
        boxes = self.all(f"{place}_{name} input[type=checkbox]")
        if boxes:
            return boxes[0].is_selected()
        fields = [f"{place}_{name} {kind}" for kind in ("input[type=number]", "textarea", "input")]
        found = next(selector for selector in fields if self.all(selector))
        return self.value(found)

    def choose(self, selector: str, option: str) -> None:
        """Pick an entry of a dropdown by its text; WebUIs write some in other capitals."""
        self.reveal(selector)
        field = self.one(f"{selector} input")
        self.js("arguments[0].focus(); arguments[0].click()", field)
        time.sleep(0.3)
        options = [
            entry
            for entry in self.all(f"{selector} ul li")
            if self.js("return arguments[0].textContent", entry).strip("✓ \n").casefold()
            == option.casefold()
        ]
        if not options:
            raise PageError(f"{selector} offers no {option}")
        press = "arguments[0].dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
        self.js(press, options[0])
        self.js("arguments[0].blur()", field)
        time.sleep(0.7)

    def generate(self, tab: str, seconds: float = 300) -> None:
        """Press Generate and wait for the pictures and their text; once for each load."""
        self.click(f"#{tab}_generate")
        until(lambda: "Steps: " in self.text(f"#html_info_{tab}"), "a finished generation", seconds)
        until(lambda: self.pictures(tab), "a picture")
        time.sleep(1)

    def pictures(self, tab: str) -> list[str]:
        """Addresses of the gallery's pictures, each once."""
        script = "return [...document.querySelectorAll(arguments[0])].map(image => image.src)"
        found = self.js(script, f"#{tab}_gallery img")
        return list(dict.fromkeys(source.split("?")[0] for source in found))

    def shapes(self, tab: str) -> list[float]:
        """Width by height of each of the gallery's pictures."""
        script = """
        const [sources, done] = arguments;
        Promise.all(sources.map(source => new Promise(resolve => {
            const image = new Image();
            image.onload = () => resolve(image.naturalWidth / image.naturalHeight);
            image.onerror = () => resolve(0);
            image.src = source;
        }))).then(done);
        """
        found: list[float] = self.driver.execute_async_script(script, self.pictures(tab))
        return found

    def text(self, selector: str) -> str:
        """All text inside an element."""
        return str(self.js("return arguments[0].textContent", self.one(selector)))

    def shoot(self, name: str, selector: str | None = None) -> Path:
        """Take a picture of the window, or of one element; below `screenshots`."""
        self.screenshots.mkdir(parents=True, exist_ok=True)
        path = self.screenshots / f"{name}.png"
        if selector is None:
            self.driver.save_screenshot(str(path))
        else:
            self.one(selector).screenshot(str(path))
        return path

    def errors(self) -> list[str]:
        """Messages of our own scripts in the browser's console since the last call."""
        entries = self.driver.get_log("browser")
        return [e["message"] for e in entries if "cross_controlnet" in e["message"].lower()]

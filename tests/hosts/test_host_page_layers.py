"""Several units in front, in a browser: pressed, named, ordered, pasted, done."""

import re

import pytest
from hosts.accordion import ENTER, PLACE, assert_legible, assert_low, fill, is_strip, state
from hosts.cases import using
from hosts.page import until

pytestmark = [pytest.mark.page, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def three(host):
    """A picture made over the API with three units, the second in front."""
    units = [*host.requests.two(), host.requests.unit("c", 3)]
    given = {"foreground_unit": 1, "foreground_word": "star"}
    return host.generate(using(host.requests.body(units, width=128, height=128), given))


def role(page, number, name):
    """The button that gives a unit a role, or moves it: "in front", "behind", "↑", "↓"."""
    script = """
    const row = [...document.querySelectorAll(arguments[0] + ' .ccn-unit')]
        .find(one => one.getAttribute('aria-label').startsWith(arguments[1]));
    return [...row?.querySelectorAll('button') ?? []]
        .find(button => button.textContent === arguments[2]);
    """
    unit = f"Unit {page.first_unit('txt2img') + number}:"
    return until(lambda: page.js(script, PLACE, unit, name), f"{name} of {unit}")


def order(page):
    """The rows' units, from the top, as the API counts them."""
    names = [row.get_attribute("aria-label") for row in page.all(f"{PLACE} .ccn-unit")]
    return [int(re.match(r"Unit (\d+)", n)[1]) - page.first_unit("txt2img") for n in names]


def in_front(page):
    """What the controls say of who is in front."""
    names = ("layers", "foreground_unit", "foreground_word")
    return tuple(page.setting("txt2img", name).split(": ccn")[0] for name in names)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_two_units_in_front(page, three, pictures, theme):
    """Pressed, named, ordered and taken back in the rows."""
    page.open(theme)
    fill(page, three, [*pictures, pictures[0]])
    page.write("#txt2img_prompt textarea", "a red star above the calm sea, at night")
    page.choose(f"{PLACE}_preset", "Layers")
    page.settle()
    page.reveal(f"{PLACE}_show_mask")
    first = page.first_unit("txt2img")
    one, two, three_ = (f"nit {number} (ccn-random-" for number in range(first, first + 3))
    until(lambda: f"U{two}b) is in front: star" in state(page), "one in front")
    page.js("arguments[0].click()", role(page, 0, "in front"))
    until(lambda: in_front(page) == ("1 star, 0", "auto", ""), f"two, but {in_front(page)}")
    until(lambda: f"behind it u{one}a) by an automatic word" in state(page), "both in words")
    assert order(page) == [1, 0, 2]
    fields_ = page.all(f"{PLACE} .ccn-field")
    assert [field.get_property("value") for field in fields_] == ["star", ""]
    chips = page.all(f"{PLACE} .ccn-unit:nth-child(2) .ccn-chip")
    page.js("arguments[0].click()", next(chip for chip in chips if chip.text == "sea"))
    until(lambda: in_front(page)[0] == "1 star, 0 sea", f"a word, but {in_front(page)}")
    up = role(page, 0, "↑")
    up.send_keys(ENTER)
    until(lambda: in_front(page)[0] == "0 sea, 1 star", f"an order, but {in_front(page)}")
    assert order(page) == [0, 1, 2]
    assert page.js("return document.activeElement === arguments[0]", up), "the focus stays"
    until(
        lambda: (
            f"U{one}a) is in front: sea; behind it u{two}b): star. U{three_}c) is behind all."
            in state(page)
        ),
        f"the order in words, but {state(page)}",
    )
    until(lambda: page.text(f"{PLACE} .ccn-badge") == "3 units layered", "a badge")
    page.shoot(f"layers-{theme}", PLACE)
    assert_low(page)
    assert_legible(page)
    page.write(f"{PLACE} .ccn-unit:nth-child(2) .ccn-field", "whale ")
    until(lambda: in_front(page)[0] == "0 sea, 1 whale", f"a typed word, but {in_front(page)}")
    until(lambda: "“whale” is not in the prompt, so u" in state(page), "what is missing")
    until(lambda: "no place for unit" in page.text(f"{PLACE} .ccn-badge"), "what is missing")
    assert page.all(f"{PLACE} .ccn-unit:nth-child(2) .ccn-field.ccn-missing")
    page.shoot(f"layers-absent-{theme}", PLACE)
    page.driver.set_window_size(400, 1800)
    page.settle()
    wide = "return arguments[0].scrollWidth - arguments[0].clientWidth"
    assert page.js(wide, page.one(PLACE)) <= 1
    names = page.all(f"{PLACE} .ccn-name")
    assert [page.js(wide, name) for name in names] == [0] * 3, "a name is cut"
    page.shoot(f"layers-narrow-{theme}", PLACE)
    page.js("arguments[0].click()", role(page, 1, "behind"))
    until(lambda: in_front(page) == ("", "0", "sea"), f"one, but {in_front(page)}")
    until(lambda: f"U{one}a) is in front: sea. " in state(page), "one in words")


def test_layers_are_pasted_and_done(page, host, pictures):
    """What a picture's text says of several in front comes back, and is what is done."""
    units = [*host.requests.two(), host.requests.unit("c", 3)]
    given = {"fusion": "layers", "inject": False, "layers": "2 star, 0 boat", "show_mask": True}
    body = host.requests.body(
        units, width=128, height=128, prompt="a red star above a boat, in the sea"
    )
    made = host.generate(using(body, given))
    assert "CCN layers: " in made.infotexts[0]
    fill(page, made, [*pictures, pictures[0]])
    until(lambda: in_front(page) == ("2 star, 0 boat", "auto", ""), f"not {in_front(page)}")
    page.reveal(f"{PLACE}_show_mask")
    until(lambda: "star; behind it u" in state(page), f"the order in words, but {state(page)}")
    assert order(page) == [2, 0, 1]
    start = host.server.mark()
    page.generate("txt2img")
    info = page.text("#html_info_txt2img")
    assert "2 star, 0 boat" in info
    assert "CCN note" not in info, info
    done = r"layers, delta .*c: mask from word star.*a: mask from word boat"
    assert re.search(done, host.server.log(start))
    assert sum(map(is_strip, page.shapes("txt2img"))) == 1
    page.js("window.scrollTo(0, 0)")
    page.shoot("layers-generated")

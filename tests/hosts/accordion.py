"""What the tests of the page share: where the accordion is, what is put there, what it shows."""

from hosts.page import LEAST_CONTRAST

ENTER, TAB = "\ue007", "\ue004"  # as the browser's driver wants them
PLACE = "#txt2img_cross_controlnet"
LOW = 366  # pixels, for three units, with the sentence left out


def is_strip(shape):
    """Whether a picture of this width by height is a strip: three panels or more side by side."""
    return shape > 2


def fill(page, made, pictures):
    """Paste a picture's settings, and give each ControlNet unit its condition."""
    page.paste("txt2img", made.infotexts[0])
    for number, path in enumerate(pictures):
        box = unit_field(page, number, "enable_checkbox")
        if not box.is_selected():  # Forge Classic pastes a unit's values, and leaves it off
            page.js("arguments[0].click()", box)
        page.upload(f"#txt2img_controlnet_ControlNet-{number}_input_image", path)


def state(page):
    """The sentence about what will happen."""
    return page.text(f"{PLACE} .ccn-state")


def unit_field(page, number, name):
    """A field of a ControlNet unit."""
    return page.one(f"#txt2img_controlnet_ControlNet-{number}_controlnet_{name} input")


def assert_legible(page):
    least, text = page.js(LEAST_CONTRAST, page.one(PLACE))
    assert least >= 4.5, f"{least:.2f}: {text}"


def assert_low(page):
    """The accordion leaves room for others; its sentence takes the lines that a font needs."""
    heights = [page.one(place).size["height"] for place in (PLACE, f"{PLACE} .ccn-state")]
    assert heights[0] - heights[1] <= LOW, heights

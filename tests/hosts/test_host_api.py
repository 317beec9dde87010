"""The extension's own routes, presets and infotext, and X/Y/Z, all over HTTP."""

import json
import math

import numpy as np
import pytest
from hosts.cases import (
    EVERYWHERE,
    METHOD,
    SIZE,
    STEPS,
    encoded,
    hires,
    layered,
    painted_mask,
    using,
)
from hosts.client import distance, same

from lib_ccn.webui.pictures import GAP, PAPER, SMALLEST

pytestmark = pytest.mark.timeout(1200)

PREFIX = "[CCN]"
BUILT_IN = {"Paper (SD 1.5)", "Layers", "PixFusion only", "SDXL", "Complementary conditions"}


def test_schema(host):
    from lib_ccn.settings import fields

    schema = host.client.call("/cross-controlnet/v1/schema")
    assert set(fields()) <= set(schema["properties"])
    delta = schema["properties"]["delta"]
    assert (delta["minimum"], delta["maximum"], delta["default"]) == (0, 1, 0.7)


def test_presets(host):
    listed = json.dumps(host.client.call("/cross-controlnet/v1/presets"))
    assert all(name in listed for name in BUILT_IN)


def test_preset_by_name(host):
    """Its values stand under those of the request itself."""
    preset = {"preset": "PixFusion only", "start_step": 1, "mask_source": "all"}
    named = {"fusion": "pix", "inject": False}
    reply = host.generate(using(host.requests.body(), preset))
    assert same(reply, host.generate(using(host.requests.body(), named)))


def test_infotext_says_what_is_not_default(host):
    settings = {**EVERYWHERE, "delta": 0.35, "mask_threshold": 0.4, "foreground_word": "red star"}
    reply = host.generate(using(host.requests.body(steps=1), settings))
    pasted = host.client.pasted(reply.infotexts[0])
    wanted = {
        "CCN enabled": "True",
        "CCN delta": "0.35",
        "CCN start step": "1",
        "CCN foreground word": "red star",
        "CCN mask source": "all",
        "CCN mask threshold": "0.4",
    }
    assert {name: str(pasted.get(name)) for name in wanted} == wanted
    assert "CCN start layer" not in pasted


def test_infotext_of_every_setting_comes_back(host):
    """What the host reads from the PNG gives the same settings again."""
    from lib_ccn.settings import Settings

    settings = Settings(
        enabled=True,
        fusion="max",
        delta=0.15,
        inject=True,
        start_step=2,
        start_layer=3,
        foreground_unit=1,
        background_unit=0,
        foreground_word='12x34, "star": 50% (red:1.2)',
        mask_source="silhouette",
        mask_threshold=0.45,
        mask_reduction=2,
        show_mask=False,
    )
    given = {k: v for k, v in settings.to_dict(only_changed=True).items() if k != "version"}
    reply = host.generate(using(host.requests.body(steps=1), given))
    assert r'CCN foreground word: "12x34, \"star\": 50% (red:1.2)"' in reply.infotexts[0]
    pasted = host.client.pasted(reply.infotexts[0])
    assert Settings.from_infotext(pasted) == settings


def test_mask_image(host):
    painted = {**METHOD, "mask_source": "image"}
    body = host.requests.body()
    plain = encoded(painted_mask(96))
    left = host.generate(using(body, {**painted, "mask_image": plain}))
    as_url = {**painted, "mask_image": f"data:image/png;base64,{plain}"}
    assert same(left, host.generate(using(body, as_url)))
    assert distance(left, host.generate(using(body, EVERYWHERE))) > 0
    assert left.note == ""


def strips_of(reply, panels):
    """The pictures of a reply that are strips of so many panels."""
    factor = math.ceil(SMALLEST / SIZE)
    width = panels * (SIZE * factor + GAP) + GAP
    everything = (*reply.pictures, *reply.extras)
    return [p for p in everything if p.shape[1] == width and p.shape[0] > SIZE * factor]


def first_panel(strip):
    """The picture that a strip begins with, at its own size."""
    factor = math.ceil(SMALLEST / SIZE)
    side = SIZE * factor
    top = next(n for n in range(len(strip)) if (strip[n, GAP : GAP + side] != PAPER).any(-1).all())
    return strip[top : top + side : factor, GAP : GAP + side : factor]


def test_result_strips(host):
    """One more image per picture: itself, its mask, who won at three depths."""
    body = host.requests.body(batch_size=2)
    plain = host.generate(using(body, METHOD))
    shown = host.generate(using(body, {**METHOD, "show_mask": True}))
    assert same(plain, shown)
    strips = strips_of(shown, 5)
    assert len(strips) == 2
    assert len(shown.extras) == len(plain.extras) + 2
    for picture, strip in zip(shown.pictures, strips, strict=True):
        assert np.array_equal(first_panel(strip), picture)


@pytest.mark.parametrize(
    ("settings", "panels"),
    [
        ({**METHOD, "fusion": "sum"}, 2),
        ({**METHOD, "start_step": 149}, 5),
        ({**EVERYWHERE, "inject": False, "mask_source": "word", "foreground_word": "absent"}, 4),
        ({**METHOD, "fusion": "sum", "mask_source": "word", "foreground_word": "absent"}, 1),
    ],
    ids=["sum", "nothing injected", "no mask", "nothing at all"],
)
def test_a_strip_shows_what_there_is(host, settings, panels):
    reply = host.generate(using(host.requests.body(), {**settings, "show_mask": True}))
    assert len(strips_of(reply, panels)) == 1


def test_strips_of_a_hires_pass_are_as_large_as_its_picture(host):
    reply = host.generate(using(hires(host.requests), {**METHOD, "show_mask": True}))
    (picture,) = reply.pictures
    factor = math.ceil(SMALLEST / picture.shape[1])
    width = 5 * (picture.shape[1] * factor + GAP) + GAP
    assert [p.shape[1] for p in reply.extras].count(width) == 1
    assert [line.startswith("hires pass: ") for line in reply.parameters["CCN done"]] == [
        False,
        True,
    ]


def test_what_was_done_is_told(host):
    """In the API's info, and not in the text of the picture."""
    reply = host.generate(using(host.requests.body(batch_size=2, n_iter=2), METHOD))
    (line,) = reply.parameters["CCN done"]
    for part in (
        "(foreground)",
        "(background)",
        "pix+channel, delta 0.7",
        "KV-Injection in layers",
    ):
        assert part in line
    assert "of the picture in front" in line
    assert "for fusion and mask" in line
    assert not any("CCN done" in text for text in reply.infotexts)


class TestGrid:
    """X/Y/Z, by the script's own API arguments."""

    def run(self, host, axis, values, arguments):
        """One row of cells."""
        labels = self.labels(host)
        nothing = labels.index("Nothing")
        given = {"X type": labels.index(axis), "Y type": nothing, "Z type": nothing}
        # The legend is drawn by calls that newer versions of Pillow lack.
        given |= {"X values": values, "Include Sub Images": True, "Draw legend": False}
        script = [given.get(a["label"], a["value"]) for a in self.script(host)["args"]]
        body = host.requests.body(script_name="x/y/z plot", script_args=script)
        return host.generate(using(body, arguments))

    def script(self, host):
        scripts = host.client.call("/sdapi/v1/script-info")
        return next(s for s in scripts if s["name"] == "x/y/z plot" and not s["is_img2img"])

    def labels(self, host):
        arguments = self.script(host)["args"]
        return next(a["choices"] for a in arguments if a["label"] == "X type")

    def test_axes_are_there(self, host):
        labels = [label for label in self.labels(host) if str(label).startswith(PREFIX)]
        for word in ("Fusion", "Delta", "Injection", "step", "layer", "word", "threshold"):
            assert any(word in label for label in labels), (word, labels)
        assert len(labels) == len(set(labels))

    def test_grid_over_delta(self, host, settled):
        label = next(x for x in self.labels(host) if x.startswith(PREFIX) and "Delta" in x)
        reply = self.run(host, label, "0, 0.5, 1", EVERYWHERE)
        cells = [p for p in (*reply.pictures, *reply.extras) if p.shape[:2] == (SIZE, SIZE)]
        for delta in (0, 0.5, 1):
            alone = host.generate(using(host.requests.body(), {**EVERYWHERE, "delta": delta}))
            assert any(np.array_equal(alone.pictures[0], cell) for cell in cells), delta

    def test_grid_over_layers(self, host):
        """Commas part the plot's values: an entry ends with a semicolon."""
        label = next(x for x in self.labels(host) if x == f"{PREFIX} Layers")
        reply = self.run(host, label, '0 star, "1 sea; 0 star"', layered())
        cells = [p for p in (*reply.pictures, *reply.extras) if p.shape[:2] == (SIZE, SIZE)]
        for text in ("0 star", "1 sea, 0 star"):
            settings = {**layered(), "layers": text}
            alone = host.generate(using(host.requests.body(), settings))
            assert any(np.array_equal(alone.pictures[0], cell) for cell in cells), text

    def test_a_cell_shows_its_strip(self, host, settled):
        label = next(x for x in self.labels(host) if x.startswith(PREFIX) and "Delta" in x)
        settings = {**EVERYWHERE, "show_mask": True}
        strips = strips_of(self.run(host, label, "0, 1", settings), 5)
        for delta in (0, 1):
            alone = host.generate(using(host.requests.body(), {**settings, "delta": delta}))
            (own,) = strips_of(alone, 5)
            assert any(np.array_equal(own, strip) for strip in strips), delta


def test_steps_are_counted_from_zero(host):
    """Injection from step 0 with a mask that needs no step before it."""
    host.state()
    host.generate(using(host.requests.body(), {**EVERYWHERE, "start_step": 0}))
    assert host.state()["counts"]["inject_keys_values"] == STEPS

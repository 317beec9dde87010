"""The strip that shows what was done to a picture."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch import nn

from lib_ccn.layers import Layer
from lib_ccn.outcome import Outcome
from lib_ccn.places import Places
from lib_ccn.rules import AVERAGED
from lib_ccn.settings import Settings
from lib_ccn.units import Unit
from lib_ccn.webui import pictures
from lib_ccn.webui.pictures import (
    GAP,
    LARGEST,
    PAPER,
    SMALLEST,
    Result,
    decision_image,
    in_one_column,
    result_strip,
    unit_name,
)
from lib_ccn.winners import AVERAGED_COLOUR, COLOURS, Decision, Winners

MASK = torch.tensor([[True, False], [False, False]])
FRONT = [(0, MASK)]


def a_picture(width, height):
    noise = np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def a_decision(names=("0: openpose", "1: depth"), sizes=(8, 4, 2)):
    maps = []
    for size in sizes:
        won = torch.zeros(size, size, dtype=torch.int8)
        won[:, size // 2 :] = 1
        won[size // 2 :] = AVERAGED
        maps.append(won)
    return Decision(19, tuple(Unit(nn.Identity(), name) for name in names), tuple(maps))


def panels_of(strip, count):
    """Where the panels are: the strip cut at the gaps, without captions and legend."""
    pixels = np.asarray(strip)
    width = (strip.width - GAP) // count - GAP
    first = pixels[:, GAP : GAP + width]
    rows = np.flatnonzero((first != PAPER).any(-1).all(1))
    top, bottom = rows[0], rows[-1] + 1
    lefts = [GAP + place * (width + GAP) for place in range(count)]
    return [pixels[top:bottom, left : left + width] for left in lefts]


@pytest.mark.parametrize(
    ("size", "panel"),
    [
        ((64, 64), (256, 256)),
        ((96, 64), (384, 256)),
        ((64, 512), (64, 512)),
        ((512, 512), (512, 512)),
        ((1024, 1024), (512, 512)),
        ((1024, 768), (512, 384)),
        ((300, 200), (300, 200)),
        ((1, 1), (256, 256)),
    ],
)
def test_panels_can_be_seen_at_every_size(size, panel):
    strip = result_strip(a_picture(*size), FRONT, a_decision())
    assert strip.width == 5 * (panel[0] + GAP) + GAP
    assert strip.height >= panel[1] + 3 * 13
    assert max(panel) <= LARGEST
    found = panels_of(strip, 5)
    assert {part.shape[:2] for part in found} == {panel[::-1]}
    if max(size) <= LARGEST:  # a small picture's own pixels
        factor = panel[0] // size[0]
        assert np.array_equal(found[0][::factor, ::factor], np.asarray(a_picture(*size)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_the_mask_lies_over_the_picture(mode):
    grey = Image.new("L", (SMALLEST, SMALLEST), 200).convert(mode)
    shown, over = (part.astype(int) for part in panels_of(result_strip(grey, FRONT, None), 2))
    assert (shown == 200).all()
    inside, outside = over[20, 20], over[200, 200]
    assert inside[0] > inside[1]
    assert (outside < 200).all()


def test_a_winner_is_its_colour_and_the_average_grey():
    *_, first, middle, last = panels_of(result_strip(a_picture(256, 256), FRONT, a_decision()), 5)
    for panel in (first, middle, last):
        assert tuple(panel[3, 3]) == COLOURS[0]
        assert tuple(panel[3, -4]) == COLOURS[1]
        assert tuple(panel[-4, 3]) == tuple(panel[-4, -4]) == AVERAGED_COLOUR
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) == 3, "nothing is smoothed"


def test_every_unit_has_a_colour():
    decided = torch.arange(-1, 12, dtype=torch.int8)[None]
    image = np.asarray(decision_image(decided))[0]
    assert tuple(image[0]) == AVERAGED_COLOUR
    assert [tuple(pixel) for pixel in image[1 : 1 + len(COLOURS)]] == list(COLOURS)


@pytest.mark.parametrize("bitmap", [False, True], ids=["this Pillow", "Pillow 9.5"])
def test_the_legend_names_units_average_and_step(monkeypatch, bitmap):
    if bitmap:
        own = (
            ImageFont.load_default_imagefont
            if hasattr(ImageFont, "load_default_imagefont")
            else ImageFont.load_default
        )
        monkeypatch.setattr(ImageFont, "load_default", lambda: own())
    written = []
    write = pictures._write
    monkeypatch.setattr(
        pictures, "_write", lambda sheet, text, *a: (written.append(text), write(sheet, text, *a))
    )
    strip = result_strip(a_picture(64, 64), FRONT, a_decision(), ["Nothing was injected."])
    assert written == [
        "picture",
        "in front: 25 %",
        "who won: 8x8",
        "4x4",
        "2x2",
        "0: openpose",
        "1: depth",
        "averaged",
        "in step 19, counted from 0",
        "Nothing was injected.",
    ]
    legend = np.asarray(strip)[-30:].reshape(-1, 3)
    for colour in (*COLOURS[:2], AVERAGED_COLOUR, pictures.INK):
        assert (legend == colour).all(1).any()


def test_a_legend_that_is_too_wide_has_rows():
    narrow = result_strip(a_picture(64, 64), [], None, ["A sentence of some length."] * 4)
    assert narrow.width == SMALLEST + 2 * GAP
    assert narrow.height > result_strip(a_picture(64, 64), [], None, ["Short."]).height + 40


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("0: control_v11p_sd15_canny [d14c016b]", "0: control_v11p_sd15_canny"),
        ("1: a [b] c", "1: a [b] c"),
        ("2: " + "x" * 80, "2: " + "x" * 14 + ".." + "x" * 17),
        ("3: a\u202eb", r"3: a\u202eb"),
        ("", ""),
    ],
)
def test_a_units_name_fits(name, shown):
    assert unit_name(name) == shown
    assert len(unit_name(name)) <= 36


@pytest.mark.parametrize("name", ["深度", "Ärger", "🦊", "\ud800", "a\nb", ""])
def test_every_name_can_be_drawn(name):
    assert result_strip(a_picture(64, 64), [], a_decision((name, "b"))).height > SMALLEST


class TestResult:
    """What of a run is shown."""

    def session(self, mask=None, decided=True, **settings):
        winners, decision = Winners(), a_decision()
        for number, unit in enumerate(decision.units):
            unit.number = number
        if decided:
            maps = dict(enumerate((*decision.maps, torch.zeros(8, dtype=torch.int8))))
            winners._latest = {0: (3, decision.units, maps), 1: (3, decision.units, maps)}
        outcome = Outcome(Settings(**settings), calls=1, fused=int(decided))
        units = decision.units
        places = Places(outcome.settings, [(Layer(0), units[0])], None, [], None, {}, print)
        if mask is not None:
            places.all[0].put(mask, mask.any(-1).any(-1))
        return SimpleNamespace(places=places, winners=winners, outcome=outcome, units=units)

    @pytest.mark.parametrize(
        ("mask", "decided", "settings", "panels", "said"),
        [
            (MASK[None], True, {"inject": False}, 5, []),
            (MASK[None], True, {}, 5, ["Nothing was injected."]),
            (None, True, {"inject": False}, 4, ["There is no mask."]),
            (MASK[None] & False, True, {"inject": False}, 4, ["There is no mask."]),
            (
                MASK[None],
                False,
                {"inject": False, "fusion": "sum"},
                2,
                ["Nobody won: sum, as the host makes it."],
            ),
            (None, False, {}, 1, ["Nobody won: not fused.", "There is no mask.", "Nothing was "]),
        ],
    )
    def test_what_is_not_there_is_said(self, mask, decided, settings, panels, said):
        result = Result()
        result.take(self.session(mask, decided, **settings), 2)
        assert result.pictures == 2
        assert len(result.said) == len(said)
        assert all(a.startswith(b) for a, b in zip(result.said, said, strict=True))
        for number in range(2):
            strip = result.strip(a_picture(256, 256), number)
            assert strip.width == panels * (256 + GAP) + GAP

    def test_each_picture_has_its_own(self):
        masks = torch.stack([MASK, ~MASK])
        result = Result()
        result.take(self.session(masks, inject=False), 2)
        first, second = (result.strip(a_picture(256, 256), n) for n in range(2))
        assert not np.array_equal(panels_of(first, 5)[1], panels_of(second, 5)[1])

    def test_each_unit_in_front_has_its_colour_and_what_two_claim_is_the_firsts(self, monkeypatch):
        session = self.session(inject=False, fusion="layers")
        left = torch.tensor([[True, False], [True, False]])
        settings, units = session.outcome.settings, session.units
        fronts = [(Layer(1), units[1]), (Layer(0), units[0])]
        session.places = Places(settings, fronts, None, [], None, {}, print)
        usable = torch.ones(1, dtype=torch.bool)
        session.places.all[0].put(MASK[None], usable)
        session.places.all[1].put(left.repeat_interleave(2, 1)[None], usable)  # finer
        result, written, write = Result(), [], pictures._write
        monkeypatch.setattr(
            pictures,
            "_write",
            lambda sheet, text, *a: (written.append(text), write(sheet, text, *a)),
        )
        result.take(session, 1)
        _, over, *_ = panels_of(result.strip(Image.new("RGB", (256, 256)), 0), 5)
        assert tuple(over[64, 127]) == COLOURS[1], "its rim"
        assert np.allclose(over[20, 20], np.array(COLOURS[1]) * 0.45, atol=1)
        assert np.allclose(over[200, 20], np.array(COLOURS[0]) * 0.45, atol=1)
        assert (over[20, 200] == 0).all()
        assert written[1] == "in front: 25 %, 25 %"
        assert "added up" in written
        assert "averaged" not in written
        assert [told.fronts for told in session.places.told()] == [[0.25], [0.25]]
        assert torch.equal(result.masks[0], left.repeat_interleave(2, 1))

    def test_what_a_hires_pass_has_not_stays_the_firsts(self):
        result = Result()
        result.take(self.session(MASK[None]), 1)
        result.take(self.session(None, False), 1)
        assert result.strip(a_picture(256, 256), 0).width == 5 * (256 + GAP) + GAP


def test_strips_below_each_other():
    strips = [Image.new("RGB", size, "red") for size in ((10, 4), (20, 6))]
    assert in_one_column(strips).size == (20, 10)

"""Who won where is what the rules decide, and can be told apart when it is shown."""

import itertools

import numpy as np
import pytest
import torch
from oracles import MARGIN, forms, make_units
from torch import nn

from lib_ccn.fusion import MODES, channel_fusion, fuse_residuals, max_fusion, pix_fusion
from lib_ccn.rules import AVERAGED
from lib_ccn.units import Call, Unit
from lib_ccn.winners import AVERAGED_COLOUR, COLOURS, Winners, depths, winners

DELTA = 0.7
G = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16


def smooth(planes):
    """Each of [..., H, W] with G, zero padded, in float64."""
    padded = torch.nn.functional.pad(planes, (1, 1, 1, 1))
    height, width = planes.shape[-2:]
    return sum(
        G[y, x] * padded[..., y : y + height, x : x + width]
        for y, x in itertools.product(range(3), repeat=2)
    )


def by_formula(units, smoothed=True):
    """Scores and cosines with the winner [N, B, H, W] by equations 1 to 4 or MaxFusion's."""
    values = torch.stack(units).double()
    sigma = values.std(2, correction=0) if smoothed else values.var(2, correction=0)
    score = sigma / sigma.sum((-2, -1), keepdim=True)
    centred = values - values.mean(2, keepdim=True)
    if smoothed:
        score, centred = smooth(score), smooth(centred)
    best = score.argmax(0)
    index = best[None, :, None].expand_as(centred[:1])
    cosine = torch.cosine_similarity(centred, centred.gather(0, index), dim=2)
    return score, cosine, best


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    ("rule", "smoothed"),
    [*((rule, True) for rule in forms(pix_fusion)), *((r, False) for r in forms(max_fusion))],
)
def test_the_winner_is_the_formulas(count, rule, smoothed):
    units = make_units((2, 6, 9, 7), count, seed=count)
    score, cosine, best = by_formula(units, smoothed)
    first, second = score.topk(2, 0).values
    others = cosine.scatter(0, best[None], -1.0)
    clear = (first - second > MARGIN * first) & ((others - DELTA).abs() > MARGIN).all(0)
    expected = best.masked_fill((others > DELTA).any(0), AVERAGED)
    decided = winners(units, DELTA, rule)
    assert decided.dtype is torch.int8
    assert clear.float().mean() > 0.9
    assert torch.equal(decided[clear].long(), expected[clear])
    assert {AVERAGED, 0, 1} <= set(decided.flatten().tolist())


@pytest.mark.parametrize("rule", forms(channel_fusion))
@pytest.mark.parametrize("count", [2, 3])
def test_the_channels_winner_is_the_formulas(count, rule):
    units = make_units((2, 40, 6, 5), count, seed=9)
    spread = torch.stack(units).double().std((-2, -1), correction=0)
    largest, best = spread.max(0)
    ratio = (spread / largest).scatter(0, best[None], -1.0).amax(0)
    clear = (ratio - DELTA).abs() > MARGIN
    expected = best.masked_fill(ratio >= DELTA, AVERAGED)
    decided = winners(units, DELTA, rule)
    assert torch.equal(decided[clear].long(), expected[clear])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rule", forms(pix_fusion, max_fusion))
def test_who_is_not_finite_never_wins(rule, bad, count):
    units = make_units((1, 6, 8, 8), count, seed=3)
    units[0][0, 2, 4, 5] = bad
    decided = winners(units, DELTA, rule)
    assert decided[0, 4, 5] != 0
    fused = rule(units, DELTA)
    for place in range(1, count):
        won = (decided == place)[:, None].expand_as(fused)
        assert torch.equal(fused[won], units[place][won])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "layers"])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_residual_is_told_once_and_the_fused_ones_are_the_same(mode, grouped, monkeypatch):
    if grouped:
        monkeypatch.setattr("lib_ccn.fusion.elements_together", lambda _: 1 << 23)
    shapes = [(2, 6, 8, 8)] * 3 + [(2, 8, 4, 4)] * 2
    layers = [make_units(shape, seed=n) for n, shape in enumerate(shapes)]
    units = [list(unit) for unit in zip(*layers, strict=True)]
    told = {}

    def keep(place, decision):
        assert place not in told
        told[place] = decision

    fused = fuse_residuals(units, mode, DELTA, keep)
    for left, right in zip(fused, fuse_residuals(units, mode, DELTA), strict=True):
        assert torch.equal(left, right)
    if mode in ("sum", "mean"):
        assert told == {}
        return
    rule = max_fusion if mode == "max" else pix_fusion
    for place, layer in enumerate(zip(*units, strict=True)):
        middle = mode == "pix+channel" and place == len(shapes) - 1
        assert torch.equal(told[place], winners(layer, DELTA, channel_fusion if middle else rule))


@pytest.mark.parametrize(
    ("count", "expected"), [(13, (0, 5, 11)), (10, (0, 4, 8)), (3, (0, 1)), (2, (0,)), (1, (0,))]
)
def test_depths_of_the_way_down(count, expected):
    assert depths(count) == expected


class TestKept:
    """What stays of a run's decisions."""

    UNITS = (Unit(nn.Identity(), "a"), Unit(nn.Identity(), "b"))

    def call(self, step=0, pictures=(0, 1, 0, 1), conditional=(2, 3), **more):
        return Call((8, 8), step, list(pictures), list(conditional), **more)

    def decide(self, found, call, decision, count=4):
        """As the fusion tells of every residual."""
        tell = found.listener(call, self.UNITS)
        if tell is not None:
            for place in range(count):
                tell(place, decision + place)

    def test_the_conditional_rows_are_shown(self):
        found, rows = Winners(), torch.arange(4, dtype=torch.int8).view(4, 1, 1)
        self.decide(found, self.call(), 10 * rows)
        for picture in (0, 1):
            decision = found.of(picture)
            assert [int(m) for m in decision.maps] == [20 + 10 * picture + n for n in (0, 1, 2)]
            assert decision.units == self.UNITS
        assert found.of(2) is None

    def test_every_residual_is_kept_and_channels_are_not_drawn(self):
        found = Winners()
        units = [make_units((4, 6, 8, 8), seed=seed) for seed in range(4)]
        by_unit = [list(unit) for unit in zip(*units, strict=True)]
        fuse_residuals(by_unit, "pix+channel", DELTA, found.listener(self.call(), self.UNITS))
        every = found.of_all(1)
        assert [decision.shape for decision in every] == [(8, 8)] * 3 + [(6,)]
        for decision, layer in zip(every[:3], units, strict=False):
            assert torch.equal(decision, winners(layer, DELTA)[3])
        assert torch.equal(every[3], winners(units[3], DELTA, channel_fusion)[3])
        assert [map.shape for map in found.of(1).maps] == [(8, 8)] * 3
        assert found.of_all(2) == []
        middle = [unit[-1:] for unit in by_unit]
        fuse_residuals(middle, "pix+channel", DELTA, found.listener(self.call(), self.UNITS))
        assert found.of(1) is None

    def test_the_latest_fused_step_stays(self):
        found, zeros = Winners(), torch.zeros(4, 2, 2, dtype=torch.int8)
        for step in range(3):
            self.decide(found, self.call(step), zeros)
        unconditional = self.call(3, conditional=())
        self.decide(found, unconditional, zeros)
        assert found.of(0).step == 2

    def test_a_batch_in_pieces(self):
        found, rows = Winners(), torch.arange(2, dtype=torch.int8).view(2, 1, 1)
        for first in (0, 2):
            pictures = [first, first + 1]
            self.decide(found, self.call(5, pictures, [0, 1], total=4), rows + 10 * first)
        assert [int(found.of(n).maps[0]) for n in range(4)] == [0, 1, 20, 21]

    def test_of_several_sub_prompts_the_first_is_shown(self):
        found, rows = Winners(), torch.arange(6, dtype=torch.int8).view(6, 1, 1)
        call = self.call(0, (0, 1, 0, 0, 1, 1), (2, 3, 4, 5), total=2, parts=[0, 1, 0, 1])
        self.decide(found, call, rows)
        assert [int(found.of(n).maps[0]) for n in range(2)] == [2, 4]

    def test_controlnets_that_ran_for_half_the_batch(self):
        found, rows = Winners(), torch.arange(2, dtype=torch.int8).view(2, 1, 1)
        self.decide(found, self.call(0, (0, 1), (2, 3)), rows)
        assert [int(found.of(n).maps[0]) for n in range(2)] == [0, 1]


# How the three kinds of colour blindness see linear RGB (Machado et al., 2009).
SIGHTS = {
    "full": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, sight):
    """CIELAB of an sRGB colour (0..255) as somebody of that sight sees it."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHTS[sight]) @ linear, 0, 1)
    ratio = XYZ @ seen / XYZ.sum(1)
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_stay_apart_for_everybody(sight):
    seen = [lab(colour, sight) for colour in (*COLOURS, AVERAGED_COLOUR)]
    for left, right in itertools.combinations(seen, 2):
        assert np.linalg.norm(left - right) > 25
    for left, right in itertools.combinations([*seen[:3], seen[-1]], 2):
        assert np.linalg.norm(left - right) > 40, "up to three units are the usual case"

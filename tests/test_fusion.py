"""The fusion rules against their formulas, written here in float64 with plain loops."""

import itertools
import math

import pytest
import torch
from oracles import (
    MARGIN,
    assert_pixels_follow_formula,
    forms,
    make_units,
    oracle_scores,
    oracle_smooth,
)

from benchmarks.fusion import sample_front
from lib_ccn import fusion
from lib_ccn import residuals as statistics
from lib_ccn.fusion import (
    MODES,
    channel_fusion,
    fuse_residuals,
    layers_fusion,
    max_fusion,
    mean_fusion,
    pix_fusion,
    smooth,
    smoothed_deviation,
    sum_fusion,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DELTAS = [0, 0.3, 0.7, 1]
pixel_rule = pytest.mark.parametrize("rule", forms(pix_fusion, max_fusion))
every_rule = pytest.mark.parametrize("rule", forms(pix_fusion, max_fusion, channel_fusion))
channel_rule = pytest.mark.parametrize("rule", forms(channel_fusion))
mean_rule = pytest.mark.parametrize("rule", forms(mean_fusion))


def is_max(rule):
    return rule.__name__ == "max_fusion"


@pixel_rule
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_pixel_rules_follow_the_formula(rule, delta, count):
    units = make_units((2, 6, 7, 5), count, seed=count)
    kinds = assert_pixels_follow_formula(units, delta, rule(units, delta), is_max(rule))
    assert kinds["ambiguous"] <= 2
    assert kinds["one"] > 0
    assert (kinds["several"] > 0) == (delta < 1)  # both branches were met


@pixel_rule
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 5, 1, 6), (1, 3, 5, 1), (2, 8, 3, 3)])
def test_pixel_rules_over_dtypes_and_sizes(rule, dtype, shape):
    for count, seed in ((2, 1), (3, 2)):
        units = make_units(shape, count, dtype, seed)
        fused = rule(units, 0.7)
        assert fused.dtype == dtype
        assert fused.shape == units[0].shape
        assert_pixels_follow_formula(units, 0.7, fused, is_max(rule))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("shape", [(2, 40, 7, 5), (1, 9, 1, 6), (1, 4, 1, 1)])
@channel_rule
def test_channel_fusion_follows_the_formula(rule, dtype, delta, shape):
    for count in (2, 3, 4):
        units = make_units(shape, count, dtype, seed=count)
        fused = rule(units, delta)
        assert fused.dtype == dtype
        close = {"rtol": 4 * max(torch.finfo(dtype).eps, 1e-6), "atol": 1e-5}
        for b, c in itertools.product(range(shape[0]), range(shape[1])):
            f = [unit[b, c].double() for unit in units]
            std = [(v - v.mean()).square().mean().sqrt().item() for v in f]
            largest = max(std)
            if any(0 < abs(s - delta * largest) < MARGIN * largest for s in std if s < largest):
                continue
            kept = [i for i, s in enumerate(std) if largest == 0 or s / largest >= delta]
            weight = {i: std[i] / sum(std[k] for k in kept) if largest else 1 / count for i in kept}
            if len(kept) == 1:
                assert torch.equal(fused[b, c], units[kept[0]][b, c])  # a copy
            want = sum(weight[i] * f[i] for i in kept)
            torch.testing.assert_close(fused[b, c].double(), want, **close)


@channel_rule
def test_channel_fusion_for_two_is_equation_8(rule):
    a, b = make_units((1, 30, 6, 6), seed=5)
    b[:, ::2] *= 0.1
    delta = 0.6
    s1, s2 = (u.double().std((2, 3), correction=0, keepdim=True) for u in (a, b))
    agreement = 1 - (s1 - s2).abs() / torch.maximum(s1, s2)
    blend = (s1 * a + s2 * b) / (s1 + s2)
    larger = torch.where(s1 >= s2, a, b)
    want = torch.where(agreement >= delta, blend, larger.double())
    assert 0 < (agreement >= delta).float().mean() < 1
    torch.testing.assert_close(rule([a, b], delta).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (1, 1, 1, 6), (3, 1, 4, 4), (2, 3, 2, 5, 3)])
def test_smooth_is_the_zero_padded_gaussian(shape):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    want = [oracle_smooth(p) for p in maps.double().reshape(-1, *shape[-2:]).tolist()]
    want = torch.tensor(want, dtype=torch.float64).reshape(shape)
    torch.testing.assert_close(smooth(maps).double(), want, rtol=1e-6, atol=1e-7)
    assert smooth(maps.half()).dtype == torch.float32


def test_smoothed_deviation_is_the_score_of_pix_fusion():
    unit = make_units((2, 6, 5, 4))[0]
    want = [oracle_scores(sample)[0] for sample in unit]
    want = torch.tensor(want, dtype=torch.float64)
    torch.testing.assert_close(smoothed_deviation(unit).double(), want, rtol=1e-5, atol=1e-8)
    assert torch.equal(smoothed_deviation(torch.zeros(1, 3, 4, 4)), torch.zeros(1, 4, 4))


@pixel_rule
def test_zero_and_constant_units_win_nowhere(rule):
    unit = make_units((2, 6, 5, 5))[0]
    for silent in (0.0, 0.1, -1e4):  # 0.1: a mean of equal floats is off by a rounding
        constant = torch.full_like(unit, silent)
        assert torch.equal(rule([constant, unit], 0.7), unit)
        assert torch.equal(rule([unit, constant, constant], 0.7), unit)
        assert torch.equal(rule([constant, constant], 0.0), constant)
    stripes = torch.randn(2, 1, 5, 5).expand(2, 6, 5, 5)  # alike in all channels
    assert torch.equal(rule([stripes, unit], 0.0), unit)


@channel_rule
def test_zero_and_constant_channels(rule):
    unit = make_units((1, 6, 5, 5))[0]
    constant = torch.full_like(unit, 0.1)
    assert torch.equal(rule([constant, unit], 0.7), unit)
    assert torch.equal(rule([torch.zeros_like(unit), unit], 0.7), unit)
    both = rule([constant, constant * 3], 0.7)
    torch.testing.assert_close(both, constant * 2)
    assert torch.equal(rule([constant * 0, constant * 0]), constant * 0)
    told = []
    assert torch.equal(rule([constant, unit], 0, told.append), unit)  # a weight of 0 is no share
    assert told[0].unique().tolist() == [1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_units_give_themselves(dtype):
    for count in (2, 3):
        units = make_units((2, 6, 5, 5), 1, dtype) * count
        for rule in forms(pix_fusion, max_fusion):
            for delta in (0.0, 0.7, 1.0):
                torch.testing.assert_close(rule(units, delta), units[0])
        for rule in forms(channel_fusion):
            torch.testing.assert_close(rule(units, 0.7), units[0])


@pixel_rule
def test_a_tie_goes_to_the_earlier_unit(rule):
    unit = make_units((2, 6, 7, 5))[0]
    # Parallel: the normalised maps tie everywhere and every cosine is 1, which is not above 1.
    assert torch.equal(rule([unit, unit * 4], 1.0), unit)
    assert torch.equal(rule([unit * 4, unit, unit * 2], 1.0), unit * 4)
    pixel = make_units((2, 6, 1, 1))
    assert torch.equal(rule(pixel, 1.0), pixel[0])  # one pixel: both maps are 1


@every_rule
def test_extreme_magnitudes(rule):
    small = make_units((2, 16, 6, 6), seed=3)
    small = [unit / unit.abs().max() for unit in small]
    usual = rule(small, 0.7)
    for scale, dtype in ((2.0**100, torch.float32), (2.0**-100, torch.float32)):
        fused = rule([(unit * scale).to(dtype) for unit in small], 0.7)
        torch.testing.assert_close(fused / scale, usual)
    doubles = [unit.double() * 2.0**900 for unit in small]
    torch.testing.assert_close((rule(doubles, 0.7) / 2.0**900).float(), usual)
    largest = [(unit * 65504).half() for unit in small]
    want = rule([unit.float() for unit in largest], 0.7)
    cancelled = 65504 * torch.finfo(torch.float32).eps  # terms as large as that
    torch.testing.assert_close(rule(largest, 0.7).float(), want, rtol=1e-3, atol=cancelled)


def test_magnitudes_that_overflow_float16_sums():
    units = [torch.full((1, 320, 4, 4), 6e4, dtype=torch.float16) for _ in range(3)]
    units[0][:, ::2] *= -1
    for mean, pix, channel in zip(
        forms(mean_fusion), forms(pix_fusion), forms(channel_fusion), strict=True
    ):
        assert torch.equal(mean(units[1:]), units[1])
        assert torch.equal(pix(units, 0.7), units[0])
        assert torch.isfinite(channel(units)).all()


@pixel_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_pixel_that_is_not_finite_is_left_out(rule, bad):
    a, b = make_units((2, 6, 7, 5), seed=7)
    a[:, :, 2:5, 2:5] *= 50  # its neighbours alone would let the broken pixel win
    broken, hole = a.clone(), a.clone()
    broken[0, 2, 3, 3] = bad
    hole[0, :, 3, 3] = 0
    fused, want = rule([broken, b], 0.3), rule([hole, b], 0.3)
    want[0, :, 3, 3] = b[0, :, 3, 3]
    torch.testing.assert_close(fused, want)
    assert torch.equal(fused[0, :, 3, 3], b[0, :, 3, 3])
    torch.testing.assert_close(fused[1], rule([a, b], 0.3)[1])
    everywhere = torch.full_like(a, bad)
    assert torch.equal(rule([everywhere, b], 0.0), b)
    assert torch.equal(rule([everywhere, everywhere], 0.0), torch.zeros_like(a))
    b[0, 0, 3, 3] = bad
    assert torch.equal(rule([broken, b], 0.3)[0, :, 3, 3], torch.zeros(6))


@channel_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_entry_that_is_not_finite_is_left_out_of_its_channel(rule, bad):
    a, b = make_units((2, 6, 7, 5), seed=8)
    a[:, 1] *= 100  # wins channel 1
    a[:, 2] = a[:, 2] * 0.01 + 50  # loses channel 2, unless the hole counted as a zero
    broken, filled = a.clone(), a.clone()
    rest = torch.ones(7, 5, dtype=torch.bool)
    rest[3, 3] = False
    for channel in (1, 2):
        broken[0, channel, 3, 3] = bad
        filled[0, channel, 3, 3] = a[0, channel][rest].mean()
    fused, want = rule([broken, b], 0.7), rule([filled, b], 0.7)
    want[0, 1:3, 3, 3] = b[0, 1:3, 3, 3]
    torch.testing.assert_close(fused, want)
    everywhere = torch.full_like(a, bad)
    assert torch.equal(rule([everywhere, b]), b)
    assert torch.equal(rule([everywhere, everywhere]), torch.zeros_like(a))


@mean_rule
def test_the_mean_leaves_out_what_is_not_finite(rule):
    a, b = make_units((1, 3, 4, 4))
    torch.testing.assert_close(rule([a, b]), (a + b) / 2)
    a[0, 0, 0, 0] = math.nan
    fused = rule([a, b])
    assert fused[0, 0, 0, 0] == b[0, 0, 0, 0]
    torch.testing.assert_close(fused[0, 1:], (a + b)[0, 1:] / 2)
    doubles = [unit.double() for unit in make_units((1, 3, 4, 4), 3)]
    torch.testing.assert_close(rule(doubles), sum(doubles) / 3, rtol=1e-15, atol=1e-15)
    halves = [unit.half() for unit in doubles]
    mean = sum(unit.double() for unit in halves) / 3
    torch.testing.assert_close(rule(halves).double(), mean, rtol=5e-4, atol=1e-7)


def test_the_sum_is_plain_addition_bit_by_bit():
    for dtype in DTYPES:
        a, b, c = make_units((2, 6, 5, 5), 3, dtype)
        assert torch.equal(sum_fusion([a, b, c]), a + b + c)
    a[0, 0, 0, 0] = math.nan
    assert sum_fusion([a, b]).isnan().sum() == 1


def layers(count, dtype=torch.float32):
    shapes = [(2, 4, 6, 6), (2, 8, 6, 6), (2, 4, 6, 6), (2, 4, 6, 6), (2, 8, 3, 3), (2, 8, 3, 3)]
    by_layer = [make_units(shape, count, dtype, seed) for seed, shape in enumerate(shapes)]
    return [list(unit) for unit in zip(*by_layer, strict=True)]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_fuse_residuals_applies_the_mode_to_every_layer(mode, count):
    rule = {
        "sum": lambda units, delta: sum_fusion(units),
        "mean": lambda units, delta: mean_fusion(units),
        "max": max_fusion,
        "pix": pix_fusion,
        "pix+channel": pix_fusion,
        "layers": lambda units, delta: layers_fusion(units, sample_front(count), delta),
    }[mode]
    units, front = layers(count), sample_front(count)
    fused = fuse_residuals(units, mode, 0.4, front=front)
    want = [rule([unit[i] for unit in units], 0.4) for i in range(6)]
    if mode == "pix+channel":
        want[-1] = channel_fusion([unit[-1] for unit in units], 0.4)
    assert all(torch.equal(a, b) for a, b in zip(fused, want, strict=True))
    only_middle = fuse_residuals([unit[-1:] for unit in units], mode, 0.4, front=front)
    assert torch.equal(only_middle[0], want[-1])


@pytest.mark.parametrize("room", [0, 600, 10**6])
@pytest.mark.parametrize("fuse", forms(fuse_residuals))
@pytest.mark.parametrize("mode", MODES)
def test_layers_fused_together_as_on_an_accelerator(monkeypatch, mode, fuse, room):
    for count in (2, 3):
        units, front = layers(count), sample_front(count)
        monkeypatch.setattr(fusion, "elements_together", lambda _: 0)
        alone = fuse_residuals(units, mode, 0.4, front=front)
        monkeypatch.setattr(fusion, "elements_together", lambda _: room)
        for a, b in zip(fuse(units, mode, 0.4, front=front), alone, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("room", "channels"),
    [
        (0, [[4], [8], [4], [4], [8], [8]]),
        (600, [[4, 4], [8], [4], [8, 8]]),  # two of the first layers, of three
        (10**6, [[8, 8, 8, 8], [8, 8]]),  # of one size: those of fewer channels stand there twice
    ],
)
def test_layers_fused_together_stay_within_their_room(monkeypatch, room, channels):
    seen, rule = [], fusion.RULES["mean"]

    def spy(units, delta):
        assert units[0][0].shape == units[1][0].shape
        seen.append([layer.shape[1] for layer in units[0]])
        return rule(units, delta)

    monkeypatch.setattr(fusion, "elements_together", lambda _: room)
    monkeypatch.setitem(fusion.RULES, "mean", spy)
    fuse_residuals(layers(2), "mean")
    assert seen == channels


@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_zeros_needs_no_repair(monkeypatch, mode):
    """Where the ControlNet is more important the unconditional rows are zero."""
    units = layers(2)
    for residual in itertools.chain(*units):
        residual[0] = 0
    front = sample_front(2)
    want = fuse_residuals(units, mode, front=front)
    monkeypatch.setattr(statistics, "_together", None)  # what a repair begins with
    for a, b in zip(fuse_residuals(units, mode, front=front), want, strict=True):
        assert torch.equal(a, b)
        assert not a[0].any()
    if mode != "sum":
        units[0][-1][0, 0, 0, 0] = math.nan
        with pytest.raises(TypeError, match="not callable"):
            fuse_residuals(units, mode, front=front)


def test_nothing_of_the_input_changes_and_no_gradient_is_kept():
    units = make_units((1, 6, 5, 5))
    before = [unit.clone() for unit in units]
    for unit in units:
        unit.requires_grad_()
    for rule in forms(pix_fusion, max_fusion, channel_fusion, mean_fusion):
        assert not rule(units).requires_grad
    assert all(torch.equal(unit, old) for unit, old in zip(units, before, strict=True))


def test_statistics_stay_float32_under_autocast():
    units = make_units((2, 16, 9, 9), 3)
    for rule in forms(pix_fusion, max_fusion, channel_fusion):
        want = rule(units)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(rule(units), want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_gives_what_the_processor_gives(mode):
    units = layers(2)
    front = sample_front(2)
    on_gpu = fuse_residuals([[r.cuda() for r in unit] for unit in units], mode, front=front)
    for a, b in zip(on_gpu, fuse_residuals(units, mode, front=front), strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a.cpu(), b)


A = torch.zeros(1, 2, 3, 3)


@pytest.mark.parametrize("rule", [pix_fusion, max_fusion, channel_fusion, mean_fusion, sum_fusion])
@pytest.mark.parametrize(
    ("residuals", "error", "words"),
    [
        ([A], ValueError, "residuals has 1"),
        ([], ValueError, "residuals has 0"),
        ([A, A[0]], ValueError, r"residuals\[1\] has shape \(2, 3, 3\)"),
        ([A, torch.zeros(1, 2, 3, 4)], ValueError, r"\(1, 2, 3, 4\); allowed: \(1, 2, 3, 3\)"),
        ([A[:, :0], A[:, :0]], ValueError, "not empty"),
        ([A, A.half()], TypeError, r"residuals\[1\] has dtype torch.float16; allowed"),
        ([A.int(), A.int()], TypeError, "torch.int32; allowed"),
        ([A, None], TypeError, r"residuals\[1\] is NoneType"),
        ([A, A.to("meta")], ValueError, "meta; allowed: cpu"),
    ],
)
def test_unfit_residuals_are_refused(rule, residuals, error, words):
    with pytest.raises(error, match=words):
        rule(residuals)


@pytest.mark.parametrize("rule", [pix_fusion, max_fusion, channel_fusion])
@pytest.mark.parametrize("delta", [-0.1, 1.1, math.nan, math.inf, "0.7", None, True])
def test_delta_out_of_range_is_refused(rule, delta):
    with pytest.raises((ValueError, TypeError), match=r"delta is .*allowed: .*0 to 1"):
        rule([A, A], delta)
    with pytest.raises((ValueError, TypeError), match="delta is"):
        fuse_residuals([[A], [A]], "pix", delta)


@pytest.mark.parametrize(
    ("units", "mode", "words"),
    [
        ([[A], [A]], "average", "mode is 'average'; allowed: sum, mean, max, pix"),
        ([[A], [A]], None, "mode is None"),
        ([[A]], "pix", "residuals_by_unit has 1 units"),
        ([[A], [A, A]], "pix", r"residuals_by_unit has \[1, 2\]"),
        ([[], []], "pix", r"residuals_by_unit has \[0, 0\]"),
        ([[A, A], [A, A[:, :1]]], "sum", r"residual 1 by unit\[1\] has shape"),
    ],
)
def test_unfit_calls_of_fuse_residuals_are_refused(units, mode, words):
    with pytest.raises(ValueError, match=words):
        fuse_residuals(units, mode)

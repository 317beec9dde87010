"""Properties of the fusion rules that hold for any residuals (hypothesis)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import forms

from lib_ccn import residuals as statistics
from lib_ccn.fusion import (
    channel_fusion,
    max_fusion,
    mean_fusion,
    pix_fusion,
    smooth,
    smoothed_deviation,
)

examples = settings(deadline=None, max_examples=30, derandomize=True)
PIXEL_RULES = forms(pix_fusion, max_fusion)
RULES = [*PIXEL_RULES, *forms(channel_fusion)]
deltas = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95, 1.0])
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
every_rule = pytest.mark.parametrize("rule", RULES)
pixel_rule = pytest.mark.parametrize("rule", PIXEL_RULES)


@st.composite
def residuals(draw, dtype=None, batch=None):
    """2 to 4 units that partly agree; pixels, channels or whole units may be zero."""
    shape = (
        batch or draw(st.integers(1, 3)),
        draw(st.integers(2, 12)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = dtype or draw(dtypes)
    common = torch.randn(shape, generator=generator)
    units = []
    for _ in range(draw(st.integers(2, 4))):
        unit = common + torch.randn(shape, generator=generator) * draw(st.sampled_from([0.2, 1, 5]))
        unit *= torch.randn(shape[0], 1, *shape[2:], generator=generator).exp()
        zero = draw(st.sampled_from(["nothing", "nothing", "pixels", "channels", "all"]))
        if zero == "pixels":
            unit *= torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.3
        elif zero == "channels":
            unit *= torch.rand(shape[0], shape[1], 1, 1, generator=generator) > 0.3
        elif zero == "all":
            unit *= 0
        units.append(unit.to(dtype))
    return units


def tolerance(dtype):
    return {"rtol": 4 * max(torch.finfo(dtype).eps, 1e-6), "atol": 1e-6}


def assert_near(a, b):
    """Equal to rounding, where terms as large as the largest value may have cancelled."""
    close = tolerance(a.dtype)
    torch.testing.assert_close(
        a, b, rtol=0, atol=close["atol"] + close["rtol"] * b.abs().max().item()
    )


def subsets(units):
    indices = range(len(units))
    return [s for n in indices for s in itertools.combinations(indices, n + 1)]


@pixel_rule
@examples
@given(units=residuals(), delta=deltas)
def test_every_pixel_is_one_units_or_a_mean(rule, units, delta):
    fused = rule(units, delta)
    explained = torch.zeros(fused[:, 0].shape, dtype=torch.bool)
    for subset in subsets(units):
        if len(subset) == 1:  # selection is a copy
            explained |= (fused == units[subset[0]]).all(1)
        elif delta < 1:
            mean = sum(units[i].double() for i in subset) / len(subset)
            explained |= torch.isclose(fused.double(), mean, **tolerance(fused.dtype)).all(1)
    assert explained.all()


@every_rule
@examples
@given(units=residuals(), delta=deltas)
def test_results_are_finite_and_between_the_units(rule, units, delta):
    fused = rule(units, delta).double()
    stacked = torch.stack(units).double()
    slack = tolerance(units[0].dtype)["rtol"] * stacked.abs().amax(0) + 1e-6
    assert (fused >= stacked.amin(0) - slack).all()
    assert (fused <= stacked.amax(0) + slack).all()


@every_rule
@examples
@given(units=residuals(batch=3), delta=deltas)
def test_samples_do_not_see_each_other(rule, units, delta):
    alone = [rule([unit[i : i + 1] for unit in units], delta) for i in range(3)]
    assert_near(rule(units, delta), torch.cat(alone))


@pixel_rule
@examples
@given(units=residuals(dtype=torch.float32), delta=deltas)
def test_the_order_of_units_matters_for_ties_only(rule, units, delta):
    if rule.__name__ == "pix_fusion":
        scores = torch.stack([smoothed_deviation(unit) for unit in units])
    else:
        spread = torch.stack([unit.var(1, correction=0) for unit in units])
        scores = spread / spread.sum((-2, -1), keepdim=True).clamp_min(1e-30)
    best, second = scores.topk(2, dim=0).values
    clear = (best - second > 1e-5 * best)[:, None]
    turned = rule(units[::-1], delta)
    assert_near(turned * clear, rule(units, delta) * clear)


@pytest.mark.parametrize("rule", forms(channel_fusion))
@examples
@given(units=residuals(dtype=torch.float32), delta=deltas)
def test_the_order_of_units_does_not_matter_for_channels(rule, units, delta):
    assert_near(rule(units[::-1], delta), rule(units, delta))


@every_rule
@examples
@given(units=residuals(dtype=torch.float32), delta=deltas, exponent=st.integers(-100, 100))
def test_a_common_power_of_two_scales_the_result(rule, units, delta, exponent):
    scale = 2.0**exponent
    fused = rule([unit * scale for unit in units], delta) / scale
    assert_near(fused, rule(units, delta))
    if abs(exponent) <= 20 and all(unit.any((1, 2, 3)).all() for unit in units):
        assert torch.equal(fused, rule(units, delta))


@every_rule
@examples
@given(units=residuals(dtype=torch.float16), delta=deltas)
def test_float16_up_to_its_limit(rule, units, delta):
    peak = max(unit.abs().max().item() for unit in units) or 1.0
    units = [(unit.float() / peak).half() for unit in units]
    large = [(unit.float() * 2.0**15).half() for unit in units]
    fused, want = rule(large, delta), rule([unit.float() * 2.0**15 for unit in units], delta)
    assert torch.isfinite(fused).all()
    torch.testing.assert_close(fused.float(), want, rtol=2e-3, atol=1e-2)


@pixel_rule
@examples
@given(units=residuals(dtype=torch.float32), exponents=st.lists(st.integers(-8, 8), min_size=4))
def test_winners_do_not_depend_on_a_units_own_scale(rule, units, exponents):
    factors = [2.0**e for e in exponents[: len(units)]]
    scaled = rule([unit * f for unit, f in zip(units, factors, strict=True)], 1.0)
    fused = rule(units, 1.0)
    same = torch.zeros(fused[:, 0].shape, dtype=torch.bool)
    for unit, factor in zip(units, factors, strict=True):
        same |= ((fused == unit) & (scaled == unit * factor)).all(1)
    assert same.all()


@every_rule
@examples
@given(units=residuals(), delta=deltas)
def test_strides_do_not_matter(rule, units, delta):
    want = rule(units, delta)
    last = [unit.contiguous(memory_format=torch.channels_last) for unit in units]
    assert_near(rule(last, delta), want)
    padded = [torch.nn.functional.pad(unit, (1, 2, 1, 0)) for unit in units]
    assert_near(rule([unit[..., 1:, 1:-2] for unit in padded], delta), want)
    turned = [unit.transpose(2, 3).contiguous().transpose(2, 3) for unit in units]
    assert_near(rule(turned, delta), want)


@every_rule
@examples
@given(units=residuals(batch=1), delta=deltas)
def test_expanded_units(rule, units, delta):
    want = rule(units, delta)
    fused = rule([unit.expand(3, -1, -1, -1) for unit in units], delta)
    assert_near(fused, want.expand(3, -1, -1, -1))


@pytest.mark.parametrize("rule", [*RULES, *forms(lambda units, delta: mean_fusion(units))])
@examples
@given(
    data=st.data(), delta=deltas, bad=st.sampled_from([float("nan"), float("inf"), -float("inf")])
)
def test_what_is_not_finite_stays_out_and_stays_in_its_sample(rule, data, delta, bad):
    units = data.draw(residuals(batch=2))
    clean = rule(units, delta)
    holes = data.draw(st.integers(1, 3))
    victim = units[data.draw(st.integers(0, len(units) - 1))]
    for _ in range(holes):
        place = tuple(data.draw(st.integers(0, size - 1)) for size in victim.shape[1:])
        victim[(0, *place)] = bad
    fused = rule(units, delta)
    assert torch.isfinite(fused).all()
    assert_near(fused[1], clean[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3])
@pixel_rule
def test_what_is_selected_is_a_copy_on_every_device(rule, count, dtype, monkeypatch):
    """Also where `lerp` is the textbook's formula, whose end is no copy of the second value."""
    monkeypatch.setattr(torch, "lerp", lambda a, b, weight: a + weight * (b - a))
    units = list(torch.randn(count, 2, 8, 12, 10).to(dtype))
    units[1] = units[1] * 1000
    fused = rule(units, 1.0)
    matches = torch.stack([(fused == unit).all(1) for unit in units])
    assert matches.any(0).all(), "at delta 1 each pixel is one of the units', bit by bit"
    assert matches[1].any()


@pytest.mark.parametrize("first", [torch.float32, torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(first):
    """Whatever it is at the first call, and later."""
    units = list(torch.randn(2, 1, 8, 12, 10))
    want = pix_fusion(units)
    usual = torch.get_default_dtype()
    try:
        for dtype in (first, torch.float32, torch.float64):
            statistics._gaussian.cache_clear()
            torch.set_default_dtype(dtype)
            assert torch.equal(pix_fusion(units), want)
            assert smooth(units[0]).dtype is torch.float32
            torch.set_default_dtype(usual)
            assert torch.equal(pix_fusion(units), want)
    finally:
        torch.set_default_dtype(usual)
        statistics._gaussian.cache_clear()

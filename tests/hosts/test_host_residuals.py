"""One UNet call's residuals, fused again by the paper's formulas in float64."""

import math

import pytest
import torch
from hosts.cases import EVERYWHERE, SUM
from hosts.checks import ROUNDING, close, scale
from oracles import MARGIN, assert_pixels_follow_formula

pytestmark = pytest.mark.timeout(1200)

# Random units hardly agree: hardly any pixel is averaged at 0.5.
DELTAS = (0.5, 0.02)


def channel_oracle(units, delta):
    """Equations 6-8 in float64, with a mask of channels too close to call."""
    values = torch.stack([unit.double() for unit in units])
    deviation = values.flatten(3).std(3, correction=0)
    largest = deviation.max(0).values
    ratio = deviation / largest
    weights = torch.where(ratio >= delta, deviation, torch.zeros_like(deviation))
    fused = (values * (weights / weights.sum(0))[..., None, None]).sum(0)
    return fused, ((ratio - delta).abs() < MARGIN).any(0)


def test_sum_reaches_the_unet(host, dumped):
    units, got, _front = dumped(SUM)
    assert len(units) == 2
    assert len(got) == (10 if host.installation.sdxl else 13)
    for layer, tensor in enumerate(got):
        assert close(tensor, units[0][layer].double() + units[1][layer].double()), layer


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.full)])
def test_fused_again(host, dumped, figures, count):
    given = host.requests.two()
    if count == 3:
        given.append(host.requests.unit("c", 3))
    kinds = {"one": 0, "several": 0, "ambiguous": 0}
    worst = 0.0
    for delta in DELTAS:
        units, got, _front = dumped({**EVERYWHERE, "delta": delta}, given)
        assert len(units) == count
        for layer, tensor in enumerate(got[:-1]):
            here = [unit[layer] for unit in units]
            # The difference's rounding is too coarse for the oracle's own tolerance: snap to what
            # each place could be, then let the oracle say which of them is right.
            snapped, error = snap(tensor, here)
            assert error < ROUNDING * scale(torch.stack(here)), layer
            found = assert_pixels_follow_formula(here, delta, snapped, variance=False)
            kinds = {kind: kinds[kind] + found[kind] for kind in kinds}
            worst = max(worst, error)
        wanted, unsure = channel_oracle([unit[-1] for unit in units], delta)
        assert not bool(unsure.all())
        difference = (got[-1].double() - wanted).abs()[~unsure]
        assert float(difference.max()) < ROUNDING * scale(wanted)
        worst = max(worst, float(difference.max()))
    assert kinds["one"] > 0
    assert kinds["several"] > 0
    figures[f"recomputed fusion of {count} units"] = (
        f"{kinds['one']} pixels of one unit, {kinds['several']} averaged, {kinds['ambiguous']} too "
        f"close to call; largest difference {worst:.1e}"
    )


def snap(tensor, units):
    """The nearest mean of units at each pixel, and the largest distance to it."""
    stacked = torch.stack([unit.double() for unit in units])
    best, best_error = None, None
    for choice in range(1, 2 ** len(units)):
        members = [i for i in range(len(units)) if choice >> i & 1]
        mean = stacked[members].mean(0)
        error = (tensor.double() - mean).abs().amax(1, keepdim=True)
        if best is None:
            best, best_error = mean, error
        else:
            nearer = error < best_error
            best, best_error = torch.where(nearer, mean, best), torch.minimum(error, best_error)
    assert not math.isnan(float(best_error.max()))
    return best, float(best_error.max())

"""One UNet call's residuals, fused again by the paper's formulas in float64."""

import pytest
import torch
from hosts.cases import EVERYWHERE, SUM
from hosts.checks import ROUNDING, close, scale
from oracles import assert_pixels_follow_formula, channel_oracle, snap

pytestmark = pytest.mark.timeout(1200)

# Random units hardly agree: hardly any pixel is averaged at 0.5.
DELTAS = (0.5, 0.02)


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

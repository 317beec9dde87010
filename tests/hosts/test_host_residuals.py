"""One UNet call's residuals, fused again by the paper's formulas in float64."""

import pytest
from hosts.cases import EVERYWHERE, SUM
from hosts.checks import FusedAgain, close

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
    again = FusedAgain()
    for delta in DELTAS:
        units, got, _front = dumped({**EVERYWHERE, "delta": delta}, given)
        assert len(units) == count
        again.call(units, got, delta)
    assert again.kinds["one"] > 0
    assert again.kinds["several"] > 0
    figures[f"recomputed fusion of {count} units"] = str(again)

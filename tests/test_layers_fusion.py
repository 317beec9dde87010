"""Front over back: the rule of layers against its formula in float64."""

import itertools

import pytest
import torch
from oracles import MARGIN, cosine, forms, make_units, oracle_scores

from lib_ccn.fusion import channel_fusion, fuse_residuals, layers_fusion, pix_fusion, sum_fusion
from lib_ccn.rules import AVERAGED, Front

DELTA = 0.5
both_forms = pytest.mark.parametrize("fuse", forms(layers_fusion))


def front_of(ranks, places, gain=1.0):
    """Places [P, B, H, W], whatever the size that is asked for."""
    return Front(ranks, lambda _size, device: places[:, :, None].to(device), gain)


def random_places(count, batch, height, width, seed=0, soft=True):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count + 1, batch, height, width, generator=generator)
    places = scores.softmax(0) if soft else (scores == scores.amax(0)).float()
    return places[:count]


def expected(units, ranks, places, gain, delta):
    """The formula in float64, and where a cosine is too close to delta to say."""
    batch, channels, height, width = units[0].shape
    out = torch.zeros(batch, channels, height, width, dtype=torch.float64)
    unsure = torch.zeros(batch, height, width, dtype=torch.bool)
    for b in range(batch):
        features = [oracle_scores(unit[b])[1] for unit in units]
        for y, x in itertools.product(range(height), range(width)):
            at = [[plane[y][x] for plane in feature] for feature in features]
            for i, unit in enumerate(units):
                weight = 1.0
                for j in range(len(units)):
                    if ranks[j] is None or (ranks[i] is not None and ranks[i] <= ranks[j]):
                        continue
                    rho = cosine(at[i], at[j])
                    unsure[b, y, x] |= any(at[i]) and any(at[j]) and abs(rho - delta) < MARGIN
                    if any(at[j]) and not (rho > delta and delta < 1):
                        weight *= 1 - float(places[ranks[j], b, y, x])
                if ranks[i] is not None:
                    weight *= 1 + (gain - 1) * float(places[ranks[i], b, y, x])
                out[b, :, y, x] += weight * unit[b, :, y, x].double()
    return out, unsure


@both_forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "ranks",
    [
        [0, None],
        [None, 0],
        [0, 1],
        [1, 0, None],
        [None, 0, 0],
        [2, None, 0, 1],
        [0, None, None, 1],
    ],
)
def test_follows_the_formula(fuse, ranks, dtype):
    units = make_units((2, 6, 5, 4), len(ranks), dtype, seed=len(ranks))
    places = random_places(1 + max(r for r in ranks if r is not None), 2, 5, 4)
    for gain, delta in ((1.0, DELTA), (1.5, 0.7), (0.5, 1.0)):
        fused = fuse(units, front_of(ranks, places, gain), delta)
        want, unsure = expected(units, ranks, places, gain, delta)
        assert unsure.float().mean() < 0.2
        close = max(4 * torch.finfo(dtype).eps, 1e-6)
        error = (fused.double() - want).abs() / (1 + want.abs())
        assert error[~unsure[:, None].expand_as(error)].max() < close


@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_place_is_the_hosts_sum_bit_for_bit(fuse, count, dtype):
    units = make_units((2, 6, 5, 4), count, dtype)
    front = front_of([*range(count - 1), None], torch.zeros(count - 1, 2, 5, 4), gain=2.0)
    assert torch.equal(fuse(units, front, DELTA), sum_fusion(units))


@both_forms
def test_a_place_everywhere_is_the_unit_in_front_alone(fuse):
    units = make_units((2, 6, 5, 4), 3)
    front = front_of([None, 0, None], torch.ones(1, 2, 5, 4))
    assert torch.equal(fuse(units, front, 1.0), units[1])


@both_forms
def test_who_agrees_is_heard(fuse):
    unit = make_units((1, 6, 5, 4))[0]
    front = front_of([0, None], torch.ones(1, 1, 5, 4))
    assert torch.allclose(fuse([unit, 0.5 * unit], front, DELTA), 1.5 * unit)
    assert torch.equal(fuse([unit, -unit], front, DELTA), unit)


@both_forms
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_who_says_nothing_silences_nobody(fuse, bad):
    units = make_units((1, 6, 9, 9))
    units[0][0, :, 2:7, 2:7] = bad
    fused = fuse(units, front_of([0, None], torch.ones(1, 1, 9, 9)), 1.0)
    inner = slice(3, 6)  # G reaches one pixel beyond the hole
    assert torch.equal(fused[..., inner, inner], units[1][..., inner, inner])
    assert torch.equal(fused[..., 0, 0], units[0][..., 0, 0]) or bad == 0.0
    assert torch.isfinite(fused).all()


def test_the_decision_says_who_silences_whom():
    one, two, three = make_units((1, 6, 4, 4), 3)
    places = torch.zeros(2, 1, 4, 4)
    places[0, 0, :2], places[1, 0, 2:, :2] = 1.0, 0.9
    told = []
    layers_fusion([three, one, two], front_of([None, 0, 1], places), 1.0, told.append)
    want = torch.full((1, 4, 4), AVERAGED, dtype=torch.int8)
    want[0, :2], want[0, 2:, :2] = 1, 2
    assert torch.equal(told[0], want)
    layers_fusion([one, one], front_of([0, None], torch.ones(1, 1, 4, 4)), DELTA, told.append)
    assert (told[1] == AVERAGED).all()  # they agree, so nobody is silenced


def test_every_layer_gets_its_own_size_and_picture():
    sizes = [(6, 8), (6, 8), (3, 4)]
    by_layer = [make_units((2, 4, *size), seed=n) for n, size in enumerate(sizes)]
    units = [list(unit) for unit in zip(*by_layer, strict=True)]
    asked = []

    def masks(size, device):
        asked.append(size)
        places = torch.zeros(1, 2, 1, *size, device=device)
        places[:, 1] = 1.0  # the second picture alone
        return places

    fused = fuse_residuals(units, "layers", 1.0, front=Front([0, None], masks))
    assert set(asked) == set(sizes)
    for place, residual in enumerate(fused):
        assert torch.equal(residual[0], units[0][place][0] + units[1][place][0])
        assert torch.equal(residual[1], units[0][place][1])


@pytest.mark.parametrize("front", [None, Front([0], lambda *_: None), Front([0] * 3, None)])
def test_units_without_a_place_in_the_order_are_refused(front):
    units = make_units((1, 4, 3, 3))
    with pytest.raises(ValueError, match=r"front has the ranks .*; allowed: one for each"):
        layers_fusion(units, front)


def over(units, front, delta=DELTA, decided=None):
    """Layers over the paper's fusion, of a list of residuals by layer."""
    by_unit = [list(unit) for unit in zip(*units, strict=True)]
    return fuse_residuals(by_unit, "layers", delta, decided, front, "pix+channel")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ranks", [[0, None], [1, 0, None], [None, 0, 0], [2, None, 0, 1]])
def test_layers_over_the_papers_fusion_follow_the_formula(ranks, dtype):
    """f + (1 - T) (P - S) in float64, of a down residual and of the middle one."""
    units = [make_units((2, 6, 5, 4), len(ranks), dtype, seed=n) for n in (1, 2)]
    places = random_places(1 + max(r for r in ranks if r is not None), 2, 5, 4)
    front = front_of(ranks, places)
    found = over(units, front)
    left = 1 - places.double().sum(0)[:, None]
    for layer, rule, fused in zip(units, (pix_fusion, channel_fusion), found, strict=True):
        want, unsure = expected(layer, ranks, places, 1.0, DELTA)
        paper = rule(layer, DELTA).double()
        want = want + left * (paper - sum(unit.double() for unit in layer))
        close = max(8 * torch.finfo(dtype).eps, 1e-6)
        error = (fused.double() - want).abs() / (1 + want.abs())
        assert error[~unsure[:, None].expand_as(error)].max() < close
        assert fused.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_outside_all_places_it_is_the_papers_fusion_and_inside_layers_bit_for_bit(count, dtype):
    units = [make_units((2, 6, 5, 4), count, dtype, seed=n) for n in (3, 4)]
    ranks = [*range(count - 1), None]
    places = torch.zeros(count - 1, 2, 5, 4)
    by_unit = [list(unit) for unit in zip(*units, strict=True)]
    paper = fuse_residuals(by_unit, "pix+channel", DELTA)
    nowhere = over(units, front_of(ranks, places))
    assert all(torch.equal(a, b) for a, b in zip(nowhere, paper, strict=True))
    places[0, :, :2] = 1
    halves = over(units, front_of(ranks, places))
    layers = fuse_residuals(by_unit, "layers", DELTA, front=front_of(ranks, places))
    for got, inside, outside in zip(halves, layers, paper, strict=True):
        assert torch.equal(got[:, :, :2], inside[:, :, :2])
        assert torch.equal(got[:, :, 2:], outside[:, :, 2:])


def test_over_the_papers_fusion_what_is_not_finite_is_left_out_outside_the_places():
    for bad in (float("nan"), float("inf")):
        units = [make_units((1, 6, 9, 9), 2, seed=n) for n in (5, 6)]
        for layer in units:
            layer[0][0, :, 2:4, 2:4] = bad
        places = random_places(1, 1, 9, 9)
        for fused in over(units, front_of([None, 0], places)):
            assert torch.isfinite(fused).all()


def test_the_decision_is_the_places_inside_and_the_papers_outside():
    units = [make_units((1, 6, 6, 6), 3, seed=n) for n in (7, 8)]
    places = torch.zeros(1, 1, 6, 6)
    places[0, 0, :3] = 1
    told, paper = {}, {}
    by_unit = [list(unit) for unit in zip(*units, strict=True)]
    over(units, front_of([None, 0, None], places), 1.0, told.__setitem__)
    fuse_residuals(by_unit, "pix+channel", 1.0, paper.__setitem__)
    assert sorted(told) == [0, 1]
    assert (told[0][:, :3] == 1).all()
    assert torch.equal(told[0][:, 3:], paper[0][:, 3:])
    assert told[1].shape == (1, 6, 6), "of the middle one the places alone: channels have none"
    with pytest.raises(ValueError, match=r"outside is 'max'; allowed: sum, pix\+channel"):
        fuse_residuals(
            by_unit, "layers", 1.0, front=front_of([0, None, None], places), outside="max"
        )

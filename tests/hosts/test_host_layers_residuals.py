"""One UNet call's residuals, composed again by the formula of layers in float64."""

import pytest
import torch
import torch.nn.functional as F
from hosts.cases import HALVES, encoded, layered, painted_mask
from hosts.checks import ROUNDING, FusedAgain, close, scale
from oracles import MARGIN, G

from lib_ccn.fusion import pix_fusion

pytestmark = pytest.mark.timeout(1200)

# Random units hardly agree: hardly anybody is heard behind another at 0.5.
DELTAS = (0.5, 0.02)


def smooth(residual):
    """A residual less its channel mean, under the zero padded kernel."""
    features = residual - residual.mean(1, keepdim=True)
    kernel = (torch.tensor(G).double() / 16).expand(features.shape[1], 1, 3, 3)
    return F.conv2d(features, kernel, padding=1, groups=features.shape[1])


def composed(units, ranks, places, gain, delta):
    """`layers_fusion`'s formula in float64, and where a cosine is too close to delta to say.

    `units` are [B, C, H, W], `ranks` None behind all, `places` [P, B or 1, H, W].
    """
    units, places = [unit.double() for unit in units], places.double()
    features = [smooth(unit) for unit in units]
    lengths = [feature.norm(dim=1) for feature in features]
    total = torch.zeros_like(units[0])
    unsure = torch.zeros_like(lengths[0], dtype=torch.bool)
    heard = torch.zeros_like(unsure)
    for i, unit in enumerate(units):
        weight = torch.ones_like(lengths[0])
        for j, rank in enumerate(ranks):
            if rank is None or (ranks[i] is not None and ranks[i] <= rank):
                continue
            product = (features[i] * features[j]).sum(1)
            rho = product / (lengths[i] * lengths[j]).clamp_min(1e-300)
            speaks = lengths[j] > 0
            unsure |= speaks & (lengths[i] > 0) & ((rho - delta).abs() < MARGIN) & (delta < 1)
            agrees = (rho > delta) & (delta < 1)
            heard |= agrees & (places[rank] > 0)
            weight = weight * (1 - places[rank] * (speaks & ~agrees))
        if ranks[i] is not None:
            weight = weight * (1 + (gain - 1) * places[ranks[i]])
        total += weight[:, None] * unit
    return total, unsure, heard


class Recomputed:
    """What a check of one UNet call has seen: pixels, and the largest difference."""

    def __init__(self):
        self.pixels = self.unsure = self.heard = 0
        self.worst = 0.0

    def check(self, units, got, ranks, places, gain, delta):
        """Compare every residual; `places` are by residual."""
        for layer, tensor in enumerate(got):
            here = [unit[layer] for unit in units]
            wanted, unsure, heard = composed(here, ranks, places[layer], gain, delta)
            error = (tensor.double() - wanted).abs().amax(1)[~unsure]
            assert float(error.max()) < ROUNDING * scale(wanted), (layer, ranks)
            self.pixels += unsure.numel()
            self.unsure += int(unsure.sum())
            self.heard += int(heard.sum())
            self.worst = max(self.worst, float(error.max()))

    def __str__(self):
        return (
            f"{self.pixels} pixels, {self.heard} with somebody heard behind another, {self.unsure} "
            f"too close to call; largest difference {self.worst:.1e}"
        )


def in_host_order(found, fronts):
    """A call's residuals by the units' numbers: those in front ran first."""
    order = sorted(range(len(found.units)), key=lambda number: number not in fronts)
    return [found.units[order.index(number)] for number in range(len(order))]


def places_of(found):
    return [found.front[f"places.{layer}"] for layer in range(len(found.got))]


def halves_at(tensor, sides):
    """What painted halves are at a residual's size, disjoint, [P, 1, H, W]."""
    height, width = tensor.shape[-2:]
    drawn = {"left": torch.zeros(1, 16, 16), "top": torch.zeros(1, 16, 16)}
    drawn["left"][..., :8] = 1
    drawn["top"][:, :8] = 1
    left, found = torch.ones(1, height, width), []
    for side in sides:
        own = F.adaptive_avg_pool2d(drawn[side], (height, width))
        found.append(own * left)
        left = left * (1 - own)
    return torch.stack(found)


def test_a_place_everywhere_is_its_unit_alone(host, dumped):
    for front in (0, 1):
        settings = layered({"unit": front, "mask_source": "all"}, delta=1)
        found = dumped(settings)
        alone = in_host_order(found, {front})[front]
        for layer, tensor in enumerate(found.got):
            assert close(tensor, alone[layer]), layer


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("gain", [1, 1.5])
def test_painted_places(host, dumped, figures, count, gain):
    """Two in front, whose places overlap: the one in front has what both claim."""
    names = "abc"[:count]
    given = [host.requests.unit(name, seed) for seed, name in enumerate(names, 1)]
    seen = Recomputed()
    for delta in DELTAS:
        for entries, sides, ranks in (
            (HALVES, ("top", "left"), [0, 1, None]),
            (HALVES[::-1], ("left", "top"), [1, 0, None]),
        ):
            settings = layered(*entries, delta=delta, foreground_gain=gain)
            found = dumped(settings, given, height=128)
            units = in_host_order(found, {0, 1})
            assert len(units) == count
            told = [None if rank < 0 else rank for rank in found.front["ranks"].tolist()]
            assert told == ranks[:count]
            places = [halves_at(tensor, sides) for tensor in found.got]
            for own, theirs in zip(places, places_of(found), strict=True):
                assert torch.allclose(own.expand_as(theirs), theirs)
            seen.check(units, found.got, ranks[:count], places, gain, delta)
    assert seen.heard > 0
    figures[f"layers of {count} units recomputed, painted, gain {gain}"] = str(seen)


def test_over_the_papers_fusion(host, dumped, figures):
    """Two in front and one behind: inside their places layers, elsewhere what the paper makes."""
    delta, ranks, sides = DELTAS[1], [0, 1, None], ("top", "left")
    given = [host.requests.unit(name, seed) for seed, name in enumerate("abc", 1)]
    settings = layered(*HALVES, delta=delta, outside_places="pix+channel")
    found = dumped(settings, given, height=128)
    units = in_host_order(found, {0, 1})
    again = FusedAgain()
    for layer, tensor in enumerate(found.got):
        here = [unit[layer] for unit in units]
        places = halves_at(tensor, sides)
        inside, unsure, _heard = composed(here, ranks, places, 1, delta)
        left = (1 - places.double().sum(0)).expand_as(unsure)
        limit = ROUNDING * scale(inside)
        error = (tensor.double() - inside).abs().amax(1)[(left == 0) & ~unsure]
        assert float(error.max()) < limit, layer
        again.worst = max(again.worst, float(error.max()))
        # f + (1 - T) (P - S), solved for P where enough of it is there.
        outside = ((left >= 0.5) & ((left == 1) | ~unsure))[:, None]
        share, added = left.clamp_min(0.5)[:, None], sum(unit.double() for unit in here)
        paper = added + (tensor.double() - inside) / share
        if layer == len(found.got) - 1:
            again.channels(here, paper, delta, 2 * limit, outside)
        else:
            # Inside the places P cannot be seen: the oracle is shown our own there.
            paper = torch.where(outside, paper, pix_fusion(here, delta).double())
            again.pixels(here, paper, delta, 2 * limit)
    assert again.kinds["one"] > 0
    assert again.kinds["several"] > 0
    figures["layers over the paper's fusion of 3 units recomputed"] = str(again)


def test_places_of_words(host, dumped, figures):
    """With the session's own masks of two words, from the step after the first."""
    entries = ({"unit": 2, "word": "star"}, {"unit": 0, "word": "sea"})
    given = host.requests.three()
    seen = Recomputed()
    for delta in DELTAS:
        found = dumped(layered(*entries, delta=delta), given, height=128, steps=3)
        assert found.front["ranks"].tolist() == [1, -1, 0]
        places = places_of(found)
        for place in places:
            assert float(place.min()) >= 0
            assert float(place.sum(0).max()) <= 1 + 1e-6, "two places overlap"
            assert float(place.amax((1, 2, 3)).min()) > 0, "a word has no place at all"
        units = in_host_order(found, {0, 2})
        seen.check(units, found.got, [1, None, 0], places, 1, delta)
    figures["layers of 3 units recomputed, by two words"] = str(seen)


def test_before_the_first_mask_it_is_the_sum(host, dumped):
    entries = ({"unit": 0, "word": "star"}, {"unit": 1, "word": "sea"})
    found = dumped(layered(*entries), skip=0)
    assert found.front == {}
    for layer, tensor in enumerate(found.got):
        assert close(tensor, found.units[0][layer].double() + found.units[1][layer].double())


def test_who_has_ended_claims_nothing(host, dumped):
    """Of two in front the first ends early: then the other has all of its own place."""
    requests = host.requests
    given = [requests.unit(guidance_end=0.4), requests.unit("b", 2), requests.unit("c", 3)]
    seen = Recomputed()
    for skip, count, ranks, sides in (
        (0, 3, [0, 1, None], ("top", "left")),
        (3, 2, [0, None], ("left",)),
    ):
        found = dumped(layered(*HALVES, delta=1), given, skip=skip, steps=4, height=128)
        assert len(found.units) == count
        fronts = {number for number, rank in enumerate(ranks) if rank is not None}
        places = [halves_at(tensor, sides) for tensor in found.got]
        seen.check(in_host_order(found, fronts), found.got, ranks, places, 1, 1)


def test_one_in_front_that_has_ended_leaves_the_sum(host, dumped):
    requests = host.requests
    given = [requests.unit(guidance_end=0.4), requests.unit("b", 2), requests.unit("c", 3)]
    settings = layered({"unit": 0, "mask_source": "all"}, delta=1)
    found = dumped(settings, given, skip=3, steps=4)
    assert len(found.units) == 2
    assert found.front == {}
    for layer, tensor in enumerate(found.got):
        assert close(tensor, found.units[0][layer].double() + found.units[1][layer].double())


def test_the_hosts_own_region_mask_applies_before(host, dumped):
    """Outside its own region the unit in front says nothing, so it silences nobody there."""
    name = "effective_region_mask" if host.family == "a1111" else "mask_image"
    region = encoded(painted_mask(128).convert("RGB"))
    given = [host.requests.unit(**{name: region}), host.requests.unit("b", 2)]
    settings = layered({"unit": 0, "mask_source": "all"}, delta=1)
    found = dumped(settings, given, height=128)
    seen = Recomputed()
    limited = []
    for tensor in found.units[0]:
        inside = torch.zeros_like(tensor)
        inside[..., : tensor.shape[-1] // 2] = tensor[..., : tensor.shape[-1] // 2]
        limited.append(inside)
    everywhere = [torch.ones(1, 1, *tensor.shape[-2:]) for tensor in found.got]
    seen.check([limited, found.units[1]], found.got, [0, None], everywhere, 1, 1)
    wide = found.got[0].shape[-1] // 2 + 1  # the kernel reaches one pixel beyond
    assert close(found.got[0][..., wide:], found.units[1][0][..., wide:])

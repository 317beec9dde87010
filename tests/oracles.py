"""The paper's pixel rules in plain Python floats, and units to try them on."""

import functools
import itertools
import math
from unittest import mock

import torch

from lib_ccn import devices

G = [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
# Decisions closer than this may fall either way: float32 statistics, float64 oracle.
MARGIN = 1e-4


def forms(*rules):
    """Rules as a CPU computes them, and as a GPU and any other accelerator would."""
    return [*rules, *(as_on(device, rule) for device in ("cuda", "mps") for rule in rules)]


def as_on(device, rule):
    """A rule that computes on the CPU what it would compute on the device."""

    @functools.wraps(rule)
    def computed(*args, **kwargs):
        like = {"is_cpu": lambda _: False, "is_cuda": lambda _: device == "cuda"}
        with mock.patch.multiple(devices, **like):
            return rule(*args, **kwargs)

    return computed


def make_units(shape, count=2, dtype=torch.float32, seed=0):
    """Units that agree in some places and dominate each other in others."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    batch, _, height, width = shape
    common = draw(*shape)
    units = []
    for _ in range(count):
        mix = (draw(batch, 1, height, width) > 0).float()
        strength = draw(batch, 1, height, width).exp()
        units.append((strength * (common * mix + draw(*shape) * 0.7) + draw(1)).to(dtype))
    return units


def oracle_smooth(plane):
    height, width = len(plane), len(plane[0])
    return [
        [
            sum(
                G[dy + 1][dx + 1] / 16 * plane[y + dy][x + dx]
                for dy, dx in itertools.product((-1, 0, 1), repeat=2)
                if 0 <= y + dy < height and 0 <= x + dx < width
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


def oracle_scores(sample, variance=False):
    """One unit's sample [C, H, W] -> (score map, centred features), plain Python floats."""
    channels, height, width = sample.shape
    f = sample.double().tolist()
    grid = list(itertools.product(range(height), range(width)))
    mean = {(y, x): math.fsum(f[c][y][x] for c in range(channels)) / channels for y, x in grid}
    spread = {
        (y, x): math.fsum((f[c][y][x] - mean[y, x]) ** 2 for c in range(channels)) / channels
        for y, x in grid
    }
    if not variance:
        spread = {place: math.sqrt(value) for place, value in spread.items()}
    total = math.fsum(spread.values())
    score = [[spread[y, x] / total if total else 0.0 for x in range(width)] for y in range(height)]
    centred = [
        [[f[c][y][x] - mean[y, x] for x in range(width)] for y in range(height)]
        for c in range(channels)
    ]
    if variance:
        return score, centred
    return oracle_smooth(score), [oracle_smooth(plane) for plane in centred]


def cosine(a, b):
    norm = math.sqrt(math.fsum(v * v for v in a)) * math.sqrt(math.fsum(v * v for v in b))
    return math.fsum(v * w for v, w in zip(a, b, strict=True)) / norm if norm else 0.0


def assert_pixels_follow_formula(units, delta, fused, variance):
    """Compare each pixel; a pixel decided by less than MARGIN may be any mean of units."""
    batch, _, height, width = units[0].shape
    close = {
        "rtol": 4 * max(torch.finfo(units[0].dtype).eps, 1e-7),
        "atol": 1e-6,
    }
    kinds = {"one": 0, "several": 0, "ambiguous": 0}
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        if (y, x) == (0, 0):
            parts = [oracle_scores(unit[b], variance) for unit in units]
        scores = [score[y][x] for score, _ in parts]
        winner = scores.index(max(scores))
        features = [[plane[y][x] for plane in centred] for _, centred in parts]
        rho = [cosine(feature, features[winner]) for feature in features]
        pixels = [unit[b, :, y, x].double() for unit in units]
        gaps = [abs(s - scores[winner]) / (scores[winner] or 1) for s in scores]
        ambiguous = any(0 < gap < MARGIN for gap in gaps) or any(
            abs(r - delta) < MARGIN and any(feature)
            for i, (r, feature) in enumerate(zip(rho, features, strict=True))
            if i != winner and delta < 1
        )
        member = [i for i in range(len(units)) if i == winner or (rho[i] > delta and delta < 1)]
        kinds["ambiguous" if ambiguous else "one" if len(member) == 1 else "several"] += 1
        subsets = [member]
        if ambiguous:
            indices = range(len(units))
            subsets = [s for n in indices for s in itertools.combinations(indices, n + 1)]
        wanted = [sum(pixels[i] for i in subset) / len(subset) for subset in subsets]
        result = fused[b, :, y, x].double()
        assert any(torch.allclose(result, want, **close) for want in wanted), (b, y, x, rho, gaps)
    return kinds


def channel_oracle(units, delta):
    """Equations 6-8 in float64, with a mask of channels too close to call."""
    values = torch.stack([unit.double() for unit in units])
    deviation = values.flatten(3).std(3, correction=0)
    largest = deviation.max(0).values
    ratio = deviation / largest
    weights = torch.where(ratio >= delta, deviation, torch.zeros_like(deviation))
    fused = (values * (weights / weights.sum(0))[..., None, None]).sum(0)
    return fused, ((ratio - delta).abs() < MARGIN).any(0)


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

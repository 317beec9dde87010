"""Measures of pictures, and their means with intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.fidelity.naturalness import Naturalness
from benchmarks.fidelity.stats import difference, estimate
from demo import metrics
from demo.scenes import draw


def test_ssim_is_one_for_equal_pictures_and_follows_the_formula():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 11, 11, generator=generator)
    assert metrics.ssim(a, a).item() == pytest.approx(1)
    # At 11x11 there is one window, so that the formula can be written out.
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(a[0].double().numpy(), b[0].double().numpy(), strict=True):
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        values.append(
            (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )
    assert metrics.ssim(a, b).item() == pytest.approx(np.mean(values), abs=1e-6)
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(a[..., :10], b[..., :10])


def test_errors_outside_the_object_are_seen_where_they_are(scenes):
    clean = scenes.picture
    near = metrics.widened(scenes.object_mask, 5) & ~metrics.widened(scenes.object_mask, 3)
    halo = torch.where(near[:, None], 1.0, clean)
    painted = torch.where(scenes.object_mask[:, None], 0.0, clean)
    assert (metrics.outside_mse(clean, scenes) < 0.01).all()
    assert (metrics.rim_mse(halo, scenes) > 3 * metrics.outside_mse(halo, scenes)).all()
    assert (metrics.outside_mse(halo, scenes) > metrics.outside_mse(clean, scenes)).all()
    # What is inside the object is nobody's business here, but for the blur at its edge.
    assert torch.allclose(
        metrics.outside_mse(painted, scenes), metrics.outside_mse(clean, scenes), atol=1e-4
    )


def test_naturalness_prefers_drawn_scenes_to_spoilt_ones():
    pristine = draw(200, torch.Generator().manual_seed(1)).picture
    fresh = draw(40, torch.Generator().manual_seed(2)).picture
    score = Naturalness.fitted(pristine)
    noise = 0.05 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(3))
    blurred = torch.nn.functional.avg_pool2d(fresh, 3, 1, 1)
    own = score(fresh).mean()
    assert own < 12  # 36 features: about 6, and more for a fit to so few
    assert score(blurred).mean() > 1.2 * own
    assert score((fresh + noise).clamp(0, 1)).mean() > 5 * own


def test_means_have_intervals_and_differences_are_paired():
    generator = np.random.default_rng(4)
    base = {str(n): float(v) for n, v in enumerate(generator.normal(5, 2, 400))}
    found = estimate(base)
    assert found.count == 400
    half = 1.96 * 2 / math.sqrt(400)
    assert found.high - found.mean == pytest.approx(half, rel=0.25)
    assert estimate(base) == found
    shifted = {pair: value + 0.01 for pair, value in base.items() if pair != "7"}
    less = difference(shifted, base)
    assert (less.mean, less.count) == (pytest.approx(0.01), 399)
    assert less.apart_from_zero
    assert estimate({}) is None

"""Pipelines with random weights; the tokenizer they use comes with the demo model."""

from __future__ import annotations

import pytest

from benchmarks.random_models import random_flux


@pytest.fixture(scope="module")
def pipe():
    return random_flux()


@pytest.fixture(scope="module")
def three():
    return random_flux(nets=3)

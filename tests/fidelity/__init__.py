"""The fidelity benchmark; what its tests share."""

from benchmarks.fidelity.methods import MAIN, Method
from benchmarks.fidelity.runner import Sampling

QUICK = Sampling(steps=2, guidance_scale=3.0, mask_reduction=2)


def main_method(key: str) -> Method:
    """The method of the main table with this key."""
    return next(method for method in MAIN if method.key == key)

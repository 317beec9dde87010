"""What fusing asks of an accelerator: nothing, and few operations; on tensors without data."""

import pytest
import torch

from benchmarks.counting import count
from benchmarks.fusion import SDXL_SHAPES, SHAPES, sample_front
from lib_ccn.fusion import MODES, fuse_residuals

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def residuals(shapes, units, dtype):
    return [[torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]] * units


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("units", [2, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_asked(mode, units, dtype, told):
    shapes = [(2, 8, 12, 10)] * 2 + [(2, 16, 12, 10), (2, 16, 6, 5), (2, 12, 6, 5), (2, 16, 6, 5)]
    decisions = {}
    given = residuals(shapes, units, dtype)
    front, tell = sample_front(units), decisions.setdefault if told else None
    counts = count(lambda: fuse_residuals(given, mode, 0.7, tell, front))
    assert not counts.waits
    fused = fuse_residuals(given, mode, front=front)
    assert [tuple(residual.shape) for residual in fused] == shapes
    assert {(residual.dtype, residual.device.type) for residual in fused} == {(dtype, "meta")}
    places = [(b, h, w) for b, _, h, w in shapes]
    if mode == "pix+channel":
        places[-1] = shapes[-1][:2]
    wanted = dict(enumerate(places)) if told and mode not in ("sum", "mean") else {}
    assert {place: tuple(told.shape) for place, told in decisions.items()} == wanted
    assert {told.dtype for told in decisions.values()} <= {torch.int8}


@pytest.mark.parametrize(
    ("shapes", "units", "dtype", "most"),
    [
        (SHAPES, 2, torch.float16, 150),
        (SHAPES, 2, torch.bfloat16, 165),
        (SHAPES, 2, torch.float32, 165),
        (SHAPES, 3, torch.float16, 295),
        (SDXL_SHAPES, 2, torch.float16, 180),
        (SDXL_SHAPES, 2, torch.bfloat16, 195),
        (SDXL_SHAPES, 2, torch.float32, 195),
        (SDXL_SHAPES, 3, torch.float16, 355),
    ],
)
@pytest.mark.parametrize("mode", ["pix+channel", "layers"])
def test_a_calls_residuals_are_few_operations(mode, shapes, units, dtype, most):
    given, front = residuals(shapes, units, dtype), sample_front(units)

    def fuse():
        fuse_residuals(given, mode, front=front)

    fuse()  # kernels that are kept
    assert count(fuse).operations.total() <= most


def test_operations_do_not_grow_with_the_layers_of_one_size():
    few, many = (residuals([(2, 8, 6, 6)] * n, 2, torch.float16) for n in (3, 9))
    fuse_residuals(few, "pix")
    counts = [count(lambda u=u: fuse_residuals(u, "pix")).operations.total() for u in (few, many)]
    assert counts[0] == counts[1]

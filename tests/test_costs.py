"""What the method may cost a step on an accelerator: operations and waits, counted without one."""

import pytest
import torch

from benchmarks.counting import count, counting
from benchmarks.fusion import SDXL_SHAPES, SHAPES
from benchmarks.operations import VARIANTS, bench, fusion_operations, step_counts

PLAIN, _, FUSION, WORD, _, LAYERS = VARIANTS
# Per family: of a plain step, of the fusion of one call's residuals.
OPERATIONS = {"sd15": (4595, 150), "sdxl": (17238, 180)}
RATIO = {"sd15": 1.05, "sdxl": 1.03}
LAUNCHES = {"sd15": 1.10, "sdxl": 1.08}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def family(request):
    return request.param, bench(request.param)


def test_fusing_is_few_operations(family):
    name, networks = family
    shapes = SHAPES if name == "sd15" else SDXL_SHAPES
    assert tuple(tuple(residual.shape) for residual in networks.controlnet(0)) == shapes
    assert fusion_operations(networks) <= OPERATIONS[name][1]


def test_the_whole_method_is_little_more_than_the_plain_step(family):
    name, networks = family
    plain, fused, *words = (
        step_counts(networks, VARIANTS[of]) for of in (PLAIN, FUSION, WORD, LAYERS)
    )
    # Another number would mean that the step is another one, or diffusers is.
    assert plain.operations.total() == OPERATIONS[name][0]
    assert not plain.waits
    assert not fused.waits
    for word in words:
        assert word.operations.total() <= RATIO[name] * plain.operations.total()
        assert word.launches.total() <= LAUNCHES[name] * plain.launches.total()
        assert word.waits.total() == 1, word.waits


@pytest.mark.parametrize(
    ("name", "units", "most"), [("sd15", 2, 1.06), ("sd15", 3, 1.08), ("sdxl", 3, 1.06)]
)
def test_pictures_with_masks_of_their_own(name, units, most):
    networks = bench(name, units, pictures=4)
    plain, *methods = (step_counts(networks, VARIANTS[of]) for of in (PLAIN, WORD, LAYERS))
    for method in methods:
        assert method.operations.total() <= most * plain.operations.total()
        assert method.waits.total() == 1, method.waits


@pytest.mark.parametrize("units", [2, 3])
def test_a_place_more_is_few_operations_more(units):
    """Every unit in front, each with its own mask; the last one's too."""
    networks = bench("sd15", units)
    plain = step_counts(networks, None)
    layers = [{"unit": n, "mask_source": "all", "word": ""} for n in range(units - 1)]
    layers.append({"unit": units - 1, "word": "x", "mask_source": "word"})
    settings = {"fusion": "layers", "layers": layers, "inject": False, "foreground_word": ""}
    counts = step_counts(networks, settings)
    assert counts.operations.total() <= 1.09 * plain.operations.total()
    assert counts.waits.total() == 1, counts.waits


def on_device(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    "question",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: x[0, 0].item(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.empty(4, 5).copy_(x),
        lambda x: torch.equal(x, x),
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.copy_(torch.ones(4, 5)),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0]),
    ],
)
def test_every_question_is_one_wait(question):
    assert count(lambda: question(on_device(4, 5))).waits.total() == 1


@pytest.mark.parametrize(
    "command",
    [
        lambda x: torch.where(x > 0, x, 0.0).sum(),
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: x.copy_(torch.ones(4, 5), non_blocking=True),
        lambda x: torch.ones(0).to(x.device),
        lambda x: x[on_device(2, dtype=torch.int64)],
        lambda x: x[1:, None, 2],
        lambda x: torch.full((2, 2), 3.0, device=x.device),
        lambda x: torch.ones(4, 5)[[0, 1]].nonzero().tolist(),
    ],
)
def test_a_command_is_no_wait(command):
    assert not count(lambda: command(on_device(4, 5))).waits


def test_operations_are_those_on_the_device():
    with counting() as counts:
        on_device(4, 5).add(1).transpose(0, 1)
        torch.ones(4, 5).add(1)
    assert dict(counts.operations) == {
        "aten.empty.memory_format": 1,
        "aten.add.Tensor": 1,
        "aten.transpose.int": 1,
    }
    assert set(counts.launches) == {"aten.empty.memory_format", "aten.add.Tensor"}


def test_attention_is_one_launch():
    q, k, v = (on_device(1, 2, 8, 16, dtype=torch.float16) for _ in range(3))
    counts = count(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert dict(counts.launches) == {"attention": 1}
    assert counts.operations.total() > 10

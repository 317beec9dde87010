"""One call of a layer's forward, in which torch's attention function is answered for each side."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lib_ccn.regional_attention import attend_marked
from lib_ccn.regions import Regions
from lib_ccn.unet_attention import capture_keys_values, inject_keys_values, self_attention_layers

from .blocks import (
    Block,
    LdmAttention,
    asked_once,
    heads_in_the_batch,
    in_stretches,
    own_softmax,
    row_by_row,
    untouched,
    upcast,
    with_a_mask,
    with_a_second_question,
)
from .oracle import equation_9, random_mask

diffusers = pytest.importorskip("diffusers")
from diffusers.models.attention_processor import Attention, AttnProcessor2_0  # noqa: E402

TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


@pytest.fixture(params=["for each side", "marked"])
def form(request, monkeypatch):
    """Which form answers torch's attention function: a processor's, or an accelerator's."""
    monkeypatch.setattr("lib_ccn.unet_attention.prefers_marks", lambda _: request.param == "marked")
    return request.param


def blocks(make, dtype=torch.float64, count=2):
    torch.manual_seed(0)
    return [Block(make()).to(dtype) for _ in range(count)]


def injected(fg, bg, x_fg, x_bg, regions, layers=None):
    store = {}
    layers = self_attention_layers(bg) if layers is None else layers
    with torch.no_grad():
        with capture_keys_values(self_attention_layers(fg), store):
            fg(x_fg)
        with inject_keys_values(layers, [store], lambda *_: regions) as tally:
            out = bg(x_bg)
    assert untouched(bg)
    return out, tally


def by_formula(fg, bg, x_fg, x_bg, mask, usable=None):
    """The layer in float64; rows that are not usable as if there were no injection."""
    own, other = bg.attn1, fg.attn1
    with torch.no_grad():
        q, k, v = (p(x_bg) for p in (own.to_q, own.to_k, own.to_v))
        k1, v1 = other.to_k(x_fg), other.to_v(x_fg)
        want = equation_9(q, k, v, k1, v1, mask, own.heads)
        if usable is not None:
            plain = equation_9(q, k, v, k, v, torch.ones_like(mask), own.heads)
            want = torch.where(usable[:, None, None], want, plain)
        last = own.to_out if isinstance(own.to_out, nn.Linear) else own.to_out[0]
        bias = None if last.bias is None else last.bias.double()
        return nn.functional.linear(want, last.weight.double(), bias)


def sdpa_block(head_dim, heads=2):
    return lambda: Attention(
        head_dim * heads, heads=heads, dim_head=head_dim, processor=AttnProcessor2_0()
    )


MASKS = {
    "one for all": lambda: random_mask(1, 24).expand(4, -1),
    "alternating": lambda: random_mask(2, 24).repeat(2, 1),
    "in blocks": lambda: random_mask(2, 24).repeat_interleave(2, 0),
    "in disorder": lambda: random_mask(2, 24)[[0, 0, 1, 0]],
    "all different": lambda: random_mask(4, 24),
    "ones": lambda: torch.ones(4, 24).bool(),
    "zeros": lambda: torch.zeros(4, 24).bool(),
    "ones, zeros and mixed": lambda: torch.stack(
        [torch.ones(24), torch.zeros(24), *random_mask(2, 24)]
    ).bool(),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
@pytest.mark.usefixtures("form")
def test_equation_9_in_every_dtype_and_head_size(dtype, head_dim):
    fg, bg = blocks(sdpa_block(head_dim), dtype)
    x_fg, x_bg = torch.randn(2, 2, 24, 2 * head_dim).to(dtype)
    mask = random_mask(1, 24).expand(2, -1)
    out, tally = injected(fg, bg, x_fg, x_bg, Regions(mask))
    assert (tally.injected, tally.by_side, out.dtype) == (1, 0, dtype)
    want = by_formula(fg, bg, x_fg, x_bg, mask)
    close = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), want, atol=close, rtol=close)


@pytest.mark.parametrize("function", [asked_once, own_softmax])
@pytest.mark.parametrize("usable", [None, [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.usefixtures("form")
def test_every_batch_row_has_its_own_mask(name, usable, function):
    fg, bg = blocks(lambda: LdmAttention(16, 2, function))
    x_fg, x_bg = torch.randn(2, 4, 24, 16, dtype=torch.float64)
    mask, usable = MASKS[name](), None if usable is None else torch.tensor(usable).bool()
    out, tally = injected(fg, bg, x_fg, x_bg, Regions(mask, usable))
    assert tally.injected == 1
    torch.testing.assert_close(out, by_formula(fg, bg, x_fg, x_bg, mask, usable))


@pytest.mark.parametrize(
    ("function", "by_side"),
    [
        (asked_once, 0),
        (upcast, 0),
        (own_softmax, 1),
        (in_stretches, 1),
        (row_by_row, 1),
        (heads_in_the_batch, 1),
        (with_a_mask, 1),
        (with_a_second_question, 1),
    ],
)
@pytest.mark.usefixtures("form")
def test_whatever_the_host_asks_the_result_is_right(function, by_side):
    fg, bg = blocks(lambda: LdmAttention(16, 2, function), torch.float32)
    x_fg, x_bg = torch.randn(2, 2, 24, 16)
    mask, layers = random_mask(2, 24), self_attention_layers(bg)
    for _ in range(2):
        out, tally = injected(fg, bg, x_fg, x_bg, Regions(mask), layers)
        assert (tally.injected, tally.by_side) == (1, by_side)
        want = by_formula(fg, bg, x_fg, x_bg, mask)
        torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


def test_another_attention_function_is_found_out_once():
    calls = []

    def counted(q, k, v, mask):
        calls.append(k.shape[2] - q.shape[2])
        return own_softmax(q, k, v, mask)

    fg, bg = blocks(lambda: LdmAttention(16, 2, counted))
    x_fg, x_bg = torch.randn(2, 2, 24, 16, dtype=torch.float64)
    mask, layers = random_mask(1, 24).expand(2, -1), self_attention_layers(bg)
    injected(fg, bg, x_fg, x_bg, Regions(mask), layers)
    first = len(calls)
    injected(fg, bg, x_fg, x_bg, Regions(mask), layers)
    assert (first, len(calls) - first) == (1 + 1 + 2, 1 + 2)


def test_a_function_that_a_host_put_in_place_of_torchs_is_still_heard(monkeypatch):
    """As on Intel's cards, where it slices what is large."""
    own = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *args, **kwargs: own(*args, **kwargs)
    )
    fg, bg = blocks(lambda: LdmAttention(16, 2, asked_once))
    x_fg, x_bg = torch.randn(2, 2, 24, 16, dtype=torch.float64)
    mask = random_mask(2, 24)
    out, tally = injected(fg, bg, x_fg, x_bg, Regions(mask))
    assert (tally.injected, tally.by_side) == (1, 0)
    torch.testing.assert_close(out, by_formula(fg, bg, x_fg, x_bg, mask))


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class OneKernel(TorchFunctionMode):
    """Torch's attention function is one operation, as it is on an accelerator."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def dispatched(regions):
    """Operations of the layer on the device "meta", where whoever asks for a number fails."""
    with torch.device("meta"):
        unit = Block(Attention(320, heads=8, dim_head=40, processor=AttnProcessor2_0()))
        x, captured = torch.empty(2, 1024, 320), (torch.empty(2, 1024, 320),) * 2
    layers = self_attention_layers(unit)
    store = {} if regions is None else {"attn1": captured}
    counts = []
    for _ in range(2):  # the indices of the step are made in the first
        context = inject_keys_values(layers, [store], lambda *_: regions)
        with torch.no_grad(), context as tally, OneKernel(), Operations() as operations:
            unit(x)
        counts.append(operations.count)
    assert tally.injected == (regions is not None)
    return counts[-1]


def test_an_injected_layer_is_few_operations_more():
    plain = dispatched(None)
    mask = random_mask(1, 1024).expand(2, -1)
    ones = torch.ones_like(mask)
    assert dispatched(Regions(ones)) - plain <= 2
    for other in (mask, ~ones, random_mask(2, 1024)):
        assert dispatched(Regions(other)) - plain <= 9


@pytest.mark.parametrize("scale", [None, 1.0, 0.02])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_sides_are_kept_apart_whatever_is_large(dtype, scale):
    """Logits of hundreds on what a query must not see do not come through."""
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 3, n, 40).to(dtype) for n in (16, 32, 32))
    mask = random_mask(2, 16)
    hidden = torch.cat((mask[0], torch.zeros(16).bool()))
    keys[0, :, hidden] = query[0, :, ~mask[0]].mean(1, keepdim=True) * 50
    values[0, :, hidden] = 1000
    out = attend_marked(query, keys, values, Regions(mask), scale=scale)
    assert (out.dtype, out.shape) == (dtype, query.shape)
    assert out[0, :, ~mask[0]].abs().max() < 10

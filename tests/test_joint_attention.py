"""Equation 9 in a joint attention, on bare tensors against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from family_oracles import masked_attention
from torch import nn

from lib_ccn.joint_attention import (
    capture_joint_keys_values,
    inject_joint_keys_values,
    joint_attention_layers,
    rotate,
)
from lib_ccn.regional_attention import attend_by_region
from lib_ccn.regions import Regions

BATCH, HEADS, TEXT, IMAGE, WIDTH = 3, 2, 5, 12, 4


def tensors(dtype=torch.float32, seed=0, text=TEXT):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, HEADS, text + IMAGE, WIDTH)] * 3 + [(BATCH, HEADS, IMAGE, WIDTH)] * 2
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def by_formula(parts, masks, usable, text=TEXT):
    """Row by row of the batch, one softmax over [text | own image | guest image]."""
    q, k, v, k1, v1 = (t.double() for t in parts)
    out = []
    for row, (mask, good) in enumerate(zip(masks, usable, strict=True)):
        allowed = torch.zeros(text + IMAGE, text + 2 * IMAGE, dtype=torch.bool)
        allowed[:, : text + IMAGE] = True
        if good:
            allowed[text:, text : text + IMAGE] = ~mask[:, None]
            allowed[text:, text + IMAGE :] = mask[:, None] == mask[None]
        keys, values = torch.cat((k, k1), 2)[row], torch.cat((v, v1), 2)[row]
        out.append(masked_attention(q[row], keys, values, allowed))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)],
)
@pytest.mark.parametrize("text", [TEXT, 0])
def test_every_row_has_its_own_mask(dtype, tolerance, text):
    parts = tensors(dtype, text=text)
    masks = torch.rand(BATCH, IMAGE, generator=torch.Generator().manual_seed(1)) > 0.5
    for fixed in ({}, {0: True}, {0: False, 1: True}):
        for row, value in fixed.items():
            masks[row] = value
        for usable in ([True] * 3, [True, False, True], [False] * 3):
            regions = Regions(masks, torch.tensor(usable))
            query, key, value, *guests = parts
            keys, values = (
                torch.cat((regions.in_order([guest], 2), own), 2)
                for guest, own in zip(guests, (key, value), strict=True)
            )
            out = attend_by_region(query, keys, values, regions)
            assert out.dtype is dtype
            want = by_formula(parts, masks, usable, text)
            torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)


def test_rotation_is_a_turn_of_pairs():
    angles = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).double()
    cos, sin = (f(angles).repeat_interleave(2, 1) for f in (torch.cos, torch.sin))
    x = torch.randn(2, 7, 4, 6, generator=torch.Generator().manual_seed(1))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    want = torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (3, 2))) * turn)
    torch.testing.assert_close(rotate(x, cos, sin).double(), want.flatten(-2), atol=1e-6, rtol=1e-6)
    assert rotate(x.half(), cos, sin).dtype is torch.float16


class Joint(nn.Module):
    """A joint attention with nothing around it."""

    def __init__(self, mask=None):
        super().__init__()
        self.norm_k = nn.Identity()
        self.mask = mask

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, self.mask)


class Net(nn.Module):
    def __init__(self, doubles=2, singles=0, **more):
        super().__init__()
        self.transformer_blocks, self.single_transformer_blocks = (
            nn.ModuleList(nn.ModuleDict({"attn": Joint(**more)}) for _ in range(count))
            for count in (doubles, singles)
        )

    def forward(self, q, k, v):
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        return [block["attn"](q, k, v) for block in blocks]


def injected(net, parts, captured, image=IMAGE, mask=True, foreground=None, **more):
    layers, store = joint_attention_layers(net), {}
    foreground = net if foreground is None else foreground
    with capture_joint_keys_values(joint_attention_layers(foreground), store):
        first = foreground(*captured)
    regions = Regions(torch.full((BATCH, image), True)) if mask else None
    with inject_joint_keys_values(layers, [store], lambda *_: regions, **more) as tally:
        out = net(*parts)
    assert not [m for m in net.modules() if "forward" in vars(m)]
    return first, out, tally


def test_positional_arguments_and_start_layers():
    q, k, v, k1, v1 = tensors()
    foreground = [torch.cat((torch.zeros_like(t[:, :, :TEXT]), t), 2) for t in (k1, k1, v1)]
    first, out, tally = injected(Net(), (q, k, v), foreground, start_layer=1)
    assert (tally.injected, tally.unchanged) == (1, 0)
    assert all(torch.equal(a, F.scaled_dot_product_attention(*foreground)) for a in first)
    assert torch.equal(out[0], F.scaled_dot_product_attention(q, k, v))
    want = by_formula((q, k, v, k1, v1), torch.full((BATCH, IMAGE), True), [True] * 3)
    torch.testing.assert_close(out[1].double(), want, atol=1e-5, rtol=1e-5)


def test_blocks_of_one_stream_do_not_meet_those_of_the_other():
    q, k, v, *_ = tensors()
    _, out, tally = injected(Net(4, 0), (q, k, v), (k, q, k), foreground=Net(2, 4))
    plain = F.scaled_dot_product_attention(q, k, v)
    assert [torch.equal(t, plain) for t in out] == [False, False, True, True]
    assert (tally.injected, tally.unchanged) == (2, 0)


@pytest.mark.parametrize(
    "case", ["a mask of the host's", "no mask of ours", "another batch", "few"]
)
def test_what_does_not_fit_runs_unchanged(case):
    q, k, v, *_ = tensors()
    net = Net(mask=torch.zeros(TEXT + IMAGE, TEXT + IMAGE)) if "host" in case else Net()
    captured = [t[:1] for t in (q, k, v)] if case == "another batch" else (k, k, v)
    image = TEXT + IMAGE + 1 if case == "few" else IMAGE
    _, out, tally = injected(net, (q, k, v), captured, image, case != "no mask of ours")
    assert tally.injected == 0
    assert all(torch.equal(t, F.scaled_dot_product_attention(q, k, v, net_mask(net))) for t in out)


def net_mask(net):
    return net.transformer_blocks[0]["attn"].mask


def test_an_architecture_without_joint_attention_has_no_layers():
    assert joint_attention_layers(nn.Linear(2, 2)) == []

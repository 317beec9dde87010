"""Attention of two regions, on bare tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_ccn.regional_attention import region_attention
from lib_ccn.regions import Regions

from .oracle import HEADS, equation_9, random_mask, tensors


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 2e-6),
        (torch.bfloat16, 3e-2),
        (torch.float16, 4e-3),
    ],
)
def test_agrees_with_equation_9_in_every_dtype(dtype, tolerance):
    parts = tensors(batch=3, dtype=dtype)
    mask = random_mask(3, 30)
    out = region_attention(*parts, mask, HEADS)
    assert out.dtype is dtype
    torch.testing.assert_close(
        out.double(), equation_9(*parts, mask, HEADS), atol=tolerance, rtol=tolerance
    )


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 40),
    heads=st.sampled_from([1, 2, 8]),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_agrees_with_equation_9_for_any_mask(batch, tokens, heads, fraction, seed):
    parts = tensors(batch, tokens, 16, torch.float64, seed)
    mask = random_mask(batch, tokens, fraction, seed)
    out = region_attention(*parts, mask, heads)
    torch.testing.assert_close(out, equation_9(*parts, mask, heads), atol=1e-11, rtol=1e-11)


def test_all_foreground_is_attention_to_the_other_units_keys():
    q2, k2, v2, k1, v1 = tensors(dtype=torch.float64)
    everywhere = torch.ones(2, 30, dtype=torch.bool)
    out = region_attention(q2, k2, v2, k1, v1, everywhere, 1)
    expected = (q2 @ k1.mT / 32**0.5).softmax(-1) @ v1
    torch.testing.assert_close(out, expected)


def test_no_foreground_is_attention_to_all_keys_of_both():
    q2, k2, v2, k1, v1 = tensors(dtype=torch.float64)
    nowhere = torch.zeros(2, 30, dtype=torch.bool)
    out = region_attention(q2, k2, v2, k1, v1, nowhere, 1)
    weights = (q2 @ torch.cat((k2, k1), 1).mT / 32**0.5).softmax(-1)
    torch.testing.assert_close(out, weights @ torch.cat((v2, v1), 1))


def test_a_batch_equals_its_rows_alone():
    parts = tensors(batch=4)
    mask = random_mask(4, 30)
    mask[2] = mask[0]
    out = region_attention(*parts, mask, HEADS)
    for row in range(4):
        alone = region_attention(*(p[row : row + 1] for p in parts), mask[row : row + 1], HEADS)
        torch.testing.assert_close(out[row : row + 1], alone)


def test_strided_inputs_are_taken_as_they_are():
    parts = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors()]
    mask = random_mask(2, 30)
    assert not parts[0].is_contiguous()
    torch.testing.assert_close(
        region_attention(*parts, mask, HEADS),
        region_attention(*(p.contiguous() for p in parts), mask, HEADS),
    )


@pytest.mark.parametrize("name", ["k2", "v2", "k1", "v1"])
def test_errors_name_the_argument(name):
    parts = dict(zip(("q2", "k2", "v2", "k1", "v1"), tensors(), strict=True))
    mask = random_mask(2, 30)
    with pytest.raises(ValueError, match=f"^{name} "):
        region_attention(**{**parts, name: parts[name][:, 1:]}, foreground=mask, heads=HEADS)
    with pytest.raises(TypeError, match=f"^{name} "):
        region_attention(**{**parts, name: parts[name].double()}, foreground=mask, heads=HEADS)


def test_errors_for_query_mask_and_heads():
    parts = tensors()
    mask = random_mask(2, 30)
    with pytest.raises(ValueError, match="heads=5"):
        region_attention(*parts, mask, 5)
    with pytest.raises(ValueError, match=r"^q2 "):
        region_attention(parts[0][0], *parts[1:], mask, HEADS)
    with pytest.raises(TypeError, match=r"^q2 "):
        region_attention(parts[0].long(), *parts[1:], mask, HEADS)
    with pytest.raises(TypeError, match=r"^foreground "):
        region_attention(*parts, mask.float(), HEADS)
    with pytest.raises(ValueError, match=r"^foreground "):
        region_attention(*parts, mask[:1], HEADS)


def test_rows_with_one_mask_share_a_group():
    mask = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0]]).bool()
    groups = Regions(mask).groups(mask.device)
    found = {tuple(g.places[0].tolist()): torch.arange(3)[g.rows].tolist() for g in groups}
    assert found == {(0,): [0, 2], (2,): [1]}
    (alone,) = Regions(mask[:1]).groups(mask.device)
    assert alone.rows is None
    assert alone.rest.tolist() == [1, 2]


def test_rows_without_a_usable_mask_are_a_group_of_their_own():
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]]).bool()
    usable = torch.tensor([True, False, True, False])
    groups = Regions(mask, usable).groups(torch.device("cpu"))
    rows = [torch.arange(4)[group.rows].tolist() for group in groups]
    sides = [(group.places[0].tolist(), group.rest.tolist()) for group in groups]
    assert rows == [[0, 2], [1, 3]]
    assert sides == [([0, 2], [1]), ([], [])]


def test_regions_are_booleans_of_one_shape():
    mask = random_mask(2, 5)
    with pytest.raises(TypeError, match=r"^places "):
        Regions(mask.float())
    with pytest.raises(ValueError, match=r"^places "):
        Regions(mask[0])
    with pytest.raises(ValueError, match="places have tokens in common"):
        Regions(torch.stack((mask, mask)))
    with pytest.raises(TypeError, match=r"^usable "):
        Regions(mask, torch.ones(2))
    with pytest.raises(ValueError, match=r"^usable "):
        Regions(mask, torch.ones(3).bool())


def test_indices_are_made_once_for_a_device():
    regions = Regions(random_mask(2, 5))
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert regions.groups(cpu) is regions.groups(cpu)
    assert regions.groups(meta)[0].rest.device == meta

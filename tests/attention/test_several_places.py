"""Several units in front, each with its place, against the formula in float64."""

import pytest
import torch
from torch import nn

from lib_ccn.regional_attention import attend_by_region
from lib_ccn.regions import Regions
from lib_ccn.unet_attention import capture_keys_values, inject_keys_values, self_attention_layers

from .blocks import Block, LdmAttention, own_softmax, untouched

diffusers = pytest.importorskip("diffusers")
from diffusers.models.attention_processor import Attention, AttnProcessor2_0  # noqa: E402

BATCH, TOKENS, HEADS, SIZE = 4, 12, 2, 4
CHANNELS = HEADS * SIZE
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def random_labels(count, seed=0, batch=BATCH):
    """Each token's place, `count` for none; rows 0 and 1 alike, one without the last place."""
    labels = torch.randint(
        0, count + 1, (batch, TOKENS), generator=torch.Generator().manual_seed(seed)
    )
    labels[1] = labels[0]
    labels[2][labels[2] == count - 1] = count
    return labels


def places_of(labels, count):
    return torch.stack([labels == n for n in range(count)])


def formula(q, own, guests, labels, usable, text=0):
    """Every token's softmax over the keys that it may see: rows of a place see its own unit there,
    the others the background unit and what every guest says outside all places.

    q [B, h, T + N, d]; own a pair [B, h, T + N, d], guests pairs [B, h, N, d]; in float64.
    """
    count = len(guests)
    keys, values = (
        torch.cat([own[n], *(pair[n] for pair in guests)], 2).double() for n in range(2)
    )
    length = text + labels.shape[1]
    out = []
    for row, good in enumerate(usable):
        seen = torch.zeros(length, keys.shape[2], dtype=torch.bool)
        seen[:, :text] = True
        seen[:text, :length] = True
        for place, label in enumerate(labels[row].tolist()):
            query = text + place
            if not good or label == count:
                seen[query, :length] = True
            if not good:
                continue
            for n in range(count):
                same = labels[row] == label
                if label in (n, count):
                    first = length + n * labels.shape[1]
                    seen[query, first : first + labels.shape[1]] = same
        logits = q[row].double() @ keys[row].mT / q.shape[-1] ** 0.5
        out.append(logits.masked_fill(~seen, -torch.inf).softmax(-1) @ values[row])
    return torch.stack(out)


@pytest.mark.parametrize("text", [0, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_row_sees_what_its_place_may(dtype, count, text):
    generator = torch.Generator().manual_seed(count)

    def draw(tokens):
        return torch.randn(BATCH, HEADS, tokens, SIZE, generator=generator).to(dtype)

    q, own = draw(text + TOKENS), (draw(text + TOKENS), draw(text + TOKENS))
    guests = [(draw(TOKENS), draw(TOKENS)) for _ in range(count)]
    for usable in ([True] * 4, [True, True, False, True], [False] * 4):
        for labels in (
            random_labels(count),
            torch.zeros(BATCH, TOKENS, dtype=torch.long),
            torch.full((BATCH, TOKENS), count),
        ):
            regions = Regions(places_of(labels, count), torch.tensor(usable))
            keys, values = (
                torch.cat((regions.in_order([pair[n] for pair in guests], 2), own[n]), 2)
                for n in range(2)
            )
            out = attend_by_region(q, keys, values, regions)
            want = formula(q, own, guests, labels, usable, text)
            torch.testing.assert_close(
                out.double(), want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
            )


def of_diffusers():
    return Attention(CHANNELS, heads=HEADS, dim_head=SIZE, processor=AttnProcessor2_0())


def of_ldm():
    return LdmAttention(CHANNELS, HEADS, own_softmax)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("make", "marked"), [(of_diffusers, False), (of_diffusers, True), (of_ldm, False)]
)
def test_whichever_function_a_layer_asks(make, marked, count, monkeypatch):
    monkeypatch.setattr("lib_ccn.unet_attention.prefers_marks", lambda _: marked)
    torch.manual_seed(0)
    background, *front = (Block(make()).double() for _ in range(count + 1))
    inputs = torch.randn(count + 1, BATCH, TOKENS, CHANNELS).double()
    labels = random_labels(count)
    usable = [True, True, True, False]
    regions = Regions(places_of(labels, count), torch.tensor(usable))
    stores = [{} for _ in front]
    with torch.no_grad():
        for block, x, store in zip(front, inputs[1:], stores, strict=True):
            with capture_keys_values(self_attention_layers(block), store):
                block(x)
        layers = self_attention_layers(background)
        with inject_keys_values(layers, stores, lambda *_: regions) as tally:
            out = background(inputs[0])
        assert (tally.injected, tally.by_side) == (1, int(make is of_ldm))
        assert untouched(background)

        def split(t):
            return t.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)

        own = background.attn1
        guests = [
            tuple(split(p(x)) for p in (block.attn1.to_k, block.attn1.to_v))
            for block, x in zip(front, inputs[1:], strict=True)
        ]
        q, k, v = (split(p(inputs[0])) for p in (own.to_q, own.to_k, own.to_v))
        want = formula(q, (k, v), guests, labels, usable).transpose(1, 2).flatten(2)
        last = own.to_out if isinstance(own.to_out, nn.Linear) else own.to_out[0]
        torch.testing.assert_close(out, last(want), atol=1e-9, rtol=1e-9)


def test_a_layer_that_a_unit_in_front_lacks_runs_unchanged():
    torch.manual_seed(0)
    background, front = (Block(of_diffusers()) for _ in range(2))
    x = torch.randn(1, TOKENS, CHANNELS)
    store = {}
    with torch.no_grad():
        with capture_keys_values(self_attention_layers(front), store):
            front(x)
        want = background(x)
        regions = Regions(places_of(random_labels(2, batch=3)[:1], 2))
        layers = self_attention_layers(background)
        with inject_keys_values(layers, [store, {}], lambda *_: regions) as tally:
            assert torch.equal(background(x), want)
    assert tally.injected == 0

"""The attention of FLUX as ComfyUI calls it, without a ComfyUI: blocks that ask one function."""

import importlib
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from lib_ccn.regions import Regions

pytestmark = pytest.mark.offline

HEADS, WIDTH, TEXT, GRID = 2, 8, 3, (4, 5)
IMAGE = GRID[0] * GRID[1]


def attention(query, key, value, heads, mask=None, skip_reshape=False, skip_output_reshape=False):
    """ComfyUI's signature; [B, heads, tokens, d] where nothing is to be reshaped."""
    assert skip_reshape
    assert query.shape[1] == heads
    out = nn.functional.scaled_dot_product_attention(query, key, value, mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Text in front of the image, one projection."""

    def __init__(self, math):
        super().__init__()
        self.qkv, self.math = nn.Linear(WIDTH, 3 * WIDTH), [math]

    def projected(self, x):
        return self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        query, key, value = self.projected(x)
        return x + self.math[0].optimized_attention(query, key, value, HEADS, skip_reshape=True)


class Net(nn.Module):
    def __init__(self, math, doubles=2, singles=1):
        super().__init__()
        self.double_blocks = nn.ModuleList(Block(math) for _ in range(doubles))
        self.single_blocks = nn.ModuleList(Block(math) for _ in range(singles))

    def blocks(self):
        return [*self.double_blocks, *self.single_blocks]

    def forward(self, x):
        for block in self.blocks():
            x = block(x)
        return x


@pytest.fixture
def flux(monkeypatch):
    """`lib_ccn.comfy.flux` over a stand-in of the module that ComfyUI's blocks ask."""
    names = ["comfy", "comfy.ldm", "comfy.ldm.flux", "comfy.ldm.flux.math"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        owner, _, last = name.rpartition(".")
        if owner:
            setattr(sys.modules[owner], last, sys.modules[name])
    sys.modules[names[-1]].optimized_attention = attention
    monkeypatch.delitem(sys.modules, "lib_ccn.comfy.flux", raising=False)
    module = importlib.import_module("lib_ccn.comfy.flux")
    yield module
    sys.modules.pop("lib_ccn.comfy.flux", None)


@pytest.fixture
def nets(flux):
    torch.manual_seed(0)
    return [Net(flux.flux_math).double() for _ in range(2)]


def untouched(flux, *nets):
    return flux.flux_math.optimized_attention is attention and not any(
        "forward" in vars(block) or block._forward_hooks for net in nets for block in net.blocks()
    )


def x(batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, TEXT + IMAGE, WIDTH, generator=generator, dtype=torch.float64)


@torch.no_grad()
def test_maps_are_what_the_images_queries_see_of_the_text(flux, nets):
    net, given = nets[0], x()
    plain = net(given)
    with flux.FLUX.recorder(net, 4) as recorder:
        recorder.begin_call(GRID, [1])
        assert torch.equal(net(given), plain)
        recorder.pause()
        assert untouched(flux, net)
        maps = recorder.take()
    wanted, own = [], given
    for block in net.double_blocks:
        query, key, _ = block.projected(own)
        logits = query[1:, :, TEXT:] @ key[1:, :, :TEXT].mT / (WIDTH // HEADS) ** 0.5
        wanted.append(logits.softmax(-1).mean(1).mT.unflatten(-1, GRID))
        own = block(own)
    assert recorder.error is None
    torch.testing.assert_close(maps, torch.stack(wanted).mean(0).float())


@torch.no_grad()
def test_every_block_follows_equation_9(flux, nets):
    front, back = nets
    first, second = (flux.FLUX.layers(net) for net in nets)
    assert [layer.name for layer in first] == [
        "double_blocks.0",
        "double_blocks.1",
        "single_blocks.0",
    ]
    mask = torch.rand(2, IMAGE, generator=torch.Generator().manual_seed(3)) < 0.4
    plain, store = front(x()), {}
    torch.testing.assert_close(plain, self_made(front.blocks(), x()))
    with flux.FLUX.capture(first, store):
        assert torch.equal(front(x()), plain)
    assert untouched(flux, *nets)
    with flux.FLUX.inject(second, [store], lambda _tokens, _batch: Regions(mask), 1) as tally:
        found = back(x(seed=2))
    assert untouched(flux, *nets)
    assert (tally.injected, tally.unchanged) == (2, 0)
    torch.testing.assert_close(found, self_made(back.blocks(), x(seed=2), store, mask, second))


def self_made(blocks, given, store=None, mask=None, layers=()):
    """The network by hand; from the second block on with the foreground's keys and values."""
    for number, block in enumerate(blocks):
        query, key, value = block.projected(given)
        seen = torch.ones(2, 1, TEXT + IMAGE, TEXT + IMAGE, dtype=torch.bool)
        if number and store is not None:
            guests = [t[:, :, TEXT:] for t in store[layers[number].name]]
            key, value = (torch.cat(p, 2) for p in zip((key, value), guests, strict=True))
            text = torch.ones(2, IMAGE, TEXT, dtype=torch.bool)
            own = (~mask)[:, :, None].expand(-1, -1, IMAGE)
            theirs = mask[:, :, None] == mask[:, None, :]
            rows = torch.cat((text, own, theirs), 2)
            nothing = torch.zeros(2, TEXT, IMAGE, dtype=torch.bool)
            seen = torch.cat((torch.cat((seen[:, 0, :TEXT], nothing), 2), rows), 1)[:, None]
        logits = query @ key.mT / (WIDTH // HEADS) ** 0.5
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        given = given + (weights @ value).transpose(1, 2).flatten(2)
    return given

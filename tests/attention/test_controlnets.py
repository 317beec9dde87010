"""Capturing and injecting on whole ControlNets: which layers, in which order, and what stays."""

import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn

from lib_ccn.regions import Regions
from lib_ccn.unet_attention import capture_keys_values, inject_keys_values, self_attention_layers

from .blocks import Block, LdmAttention, untouched
from .oracle import HEADS, equation_9, random_mask

diffusers = pytest.importorskip("diffusers")


def test_layers_of_sd15_and_sdxl():
    with torch.device("meta"):
        sd15 = self_attention_layers(diffusers.ControlNetModel())
        sdxl = self_attention_layers(
            diffusers.ControlNetModel(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                block_out_channels=(320, 640, 1280),
                transformer_layers_per_block=[1, 2, 10],
                attention_head_dim=[5, 10, 20],
                cross_attention_dim=2048,
            )
        )
    assert [layer.layer for layer in sd15] == list(range(7))
    assert sd15[-1].name.startswith("mid_block")
    inner = [sum(entry.layer == layer for entry in sdxl) for layer in range(5)]
    assert inner == [2, 2, 10, 10, 10]
    assert sdxl[-1].layer == 4
    assert self_attention_layers(nn.Linear(2, 2)) == []


def test_layers_are_listed_in_execution_order():
    controlnet = tiny_controlnet(0)
    layers = self_attention_layers(controlnet)
    order = []
    handles = [
        entry.module.register_forward_hook(lambda m, *_, n=entry.name: order.append(n))
        for entry in layers
    ]
    run(controlnet)
    for handle in handles:
        handle.remove()
    assert order == [entry.name for entry in layers]


def tiny_controlnet(seed, inner=2, first="CrossAttnDownBlock2D"):
    torch.manual_seed(seed)
    controlnet = diffusers.ControlNetModel(
        block_out_channels=(16, 32),
        down_block_types=(first, "CrossAttnDownBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=inner,
        attention_head_dim=2,
        cross_attention_dim=24,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 8),
    )
    for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.1)
    return controlnet.double().eval()


def run(controlnet, seed=5, size=(6, 10)):
    torch.manual_seed(seed)
    with torch.no_grad():
        down, mid = controlnet(
            torch.randn(2, 4, *size).double(),
            torch.tensor(500),
            torch.randn(2, 7, 24).double(),
            torch.randn(2, 3, size[0] * 2, size[1] * 2).double(),
            return_dict=False,
        )
    return (*down, mid)


def masks(tokens, batch):
    return random_mask(batch, tokens, seed=tokens)


def regions(tokens, batch):
    return Regions(masks(tokens, batch))


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_layer_of_a_controlnet_follows_equation_9():
    fg, bg = tiny_controlnet(1), tiny_controlnet(2)
    layers, store, seen = self_attention_layers(bg), {}, {}
    with capture_keys_values(self_attention_layers(fg), store):
        run(fg)
    assert len(store) == len(layers) == 6

    def watch(position):
        return lambda _m, args, out: seen.update({position: (args[0], out)})

    handles = [e.module.register_forward_hook(watch(i)) for i, e in enumerate(layers)]
    with inject_keys_values(layers, [store], regions) as tally:
        run(bg, seed=6)
    for handle in handles:
        handle.remove()
    assert tally.injected == 6
    with torch.no_grad():
        for position, layer in enumerate(layers):
            name, attn = layer.name, layer.module
            x, out = seen[position]
            own = (attn.to_q(x), attn.to_k(x), attn.to_v(x))
            mask = masks(x.shape[1], 2)
            expected = attn.to_out[0](equation_9(*own, *store[name], mask, attn.heads))
            torch.testing.assert_close(out, expected)
    assert untouched(fg)
    assert untouched(bg)


def test_capturing_changes_no_bit_of_the_foreground_unit():
    controlnet, store = tiny_controlnet(1), {}
    plain = run(controlnet)
    with capture_keys_values(self_attention_layers(controlnet), store):
        captured = run(controlnet)
    assert equal(captured, plain)
    assert equal(run(controlnet), plain)


def test_start_layer_counts_spatial_transformers():
    fg, bg = tiny_controlnet(1), tiny_controlnet(2)
    layers, store = self_attention_layers(bg), {}
    assert [e.layer for e in layers] == [0, 0, 1, 1, 2, 2]
    with capture_keys_values(self_attention_layers(fg), store):
        run(fg)
    plain = run(bg)
    with inject_keys_values(layers, [store], regions, start_layer=2) as tally:
        injected = run(bg)
    assert tally.injected == 2
    assert equal(injected[:-1], plain[:-1])
    assert not torch.equal(injected[-1], plain[-1])
    with inject_keys_values(layers, [store], regions, start_layer=3):
        assert equal(run(bg), plain)


def kept(net, layers):
    """The inputs [B, N, C] and outputs of the layers, by name, while the ControlNet runs."""
    seen = {}
    handles = [
        entry.module.register_forward_hook(
            lambda _m, args, out, name=entry.name: seen.update({name: (args[0], out)})
        )
        for entry in layers
    ]
    run(net, seed=6)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("swapped", [False, True], ids=["deep background", "deep foreground"])
@pytest.mark.parametrize(
    "changes", [{"inner": (2, 1)}, {"first": "DownBlock2D"}], ids=["inner blocks", "no first layer"]
)
def test_controlnets_of_unlike_depth_are_paired_by_layer(changes, swapped):
    fg, bg = tiny_controlnet(1, **changes), tiny_controlnet(2)
    fg, bg = (bg, fg) if swapped else (fg, bg)
    first, layers, store = self_attention_layers(fg), self_attention_layers(bg), {}
    modules = {entry.name: entry.module for entry in first}
    assert len(first) != len(layers)
    with torch.no_grad():
        inputs = kept(fg, first)
        with capture_keys_values(first, store):
            run(fg, seed=6)
        with inject_keys_values(layers, [store], regions) as tally:
            seen = kept(bg, layers)
        for layer in layers:
            name, attn = layer.name, layer.module
            x, out = seen[name]
            q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
            mask = masks(x.shape[1], 2)
            if name in modules:
                other, x1 = modules[name], inputs[name][0]
                want = equation_9(q, k, v, other.to_k(x1), other.to_v(x1), mask, attn.heads)
            else:  # plain attention to its own keys
                want = equation_9(q, k, v, k, v, torch.ones_like(mask), attn.heads)
            torch.testing.assert_close(out, attn.to_out[0](want))
    assert tally.injected == len(modules.keys() & {entry.name for entry in layers}) == 4


class LdmNet(nn.Module):
    """A ControlNet's module tree in the WebUIs: SDXL's full one, or a smaller one."""

    def __init__(self, layers, inner):
        super().__init__()
        blocks = {place: nn.Identity() for place in range(9)}
        blocks.update({place: self.layer(inner) for place in layers})
        self.input_blocks = nn.ModuleList(blocks[place] for place in range(9))
        self.middle_block = self.layer(inner)

    @staticmethod
    def layer(inner):
        transformer = nn.Module()
        transformer.transformer_blocks = nn.ModuleList(
            Block(LdmAttention(32, HEADS).double()) for _ in range(inner)
        )
        return nn.ModuleList([nn.Identity(), transformer])

    def forward(self, x):
        for entry in self_attention_layers(self):
            x = entry.module(x)
        return x


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "compiled"])
def test_a_smaller_controlnet_of_the_webuis_meets_the_same_layers(wrapped):
    small, full = LdmNet([7, 8], 1), LdmNet([4, 5, 7, 8], 2)
    root = nn.Module()
    root._orig_mod = small  # as torch.compile wraps it
    layers, store, x = self_attention_layers(full), {}, torch.randn(2, 25, 32).double()
    with torch.no_grad():
        with capture_keys_values(self_attention_layers(root if wrapped else small), store):
            small(x)
        with inject_keys_values(layers, [store], regions) as tally:
            full(x)
    blocks = ("input_blocks.7.1", "input_blocks.8.1", "middle_block.1")
    assert list(store) == [f"{block}.transformer_blocks.0.attn1" for block in blocks]
    assert set(store) < {entry.name for entry in layers}
    assert tally.injected == 3


def test_units_sharing_a_controlnet_equal_two_copies_of_it():
    shared = tiny_controlnet(1)
    copied = copy.deepcopy(shared)
    results = []
    for bg in (shared, copied):
        store = {}
        with capture_keys_values(self_attention_layers(shared), store):
            run(shared)
        with inject_keys_values(self_attention_layers(bg), [store], regions):
            results.append(run(bg, seed=6))
    assert equal(*results)
    assert untouched(shared)


def test_a_new_capture_forgets_the_last_one():
    controlnet, store = tiny_controlnet(1), {"of the last call": ()}
    with capture_keys_values([], store):
        run(controlnet)
    assert store == {}


def fail(*_):
    raise RuntimeError("interrupted")


@pytest.mark.parametrize("stage", ["capture", "inject", "mask"])
def test_an_exception_leaves_nothing_behind(stage):
    controlnet, store = tiny_controlnet(1), {}
    layers = self_attention_layers(controlnet)
    plain = run(controlnet)
    with capture_keys_values(layers, store):
        run(controlnet)
    context = {
        "capture": lambda: capture_keys_values(layers, store),
        "inject": lambda: inject_keys_values(layers, [store], regions),
        "mask": lambda: inject_keys_values(layers, [store], fail),
    }[stage]
    handle = controlnet.mid_block.resnets[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"), context():
        run(controlnet)
    handle.remove()
    assert untouched(controlnet)
    assert equal(run(controlnet), plain)


def test_a_failure_while_hooks_are_set_removes_those_already_set():
    controlnet = tiny_controlnet(1)
    layers = self_attention_layers(controlnet)
    layers.append(dataclasses.replace(layers[0], module=nn.Identity()))
    store = {entry.name: (torch.zeros(1), torch.zeros(1)) for entry in layers}
    with pytest.raises(AttributeError), inject_keys_values(layers, [store], regions):
        pass
    with pytest.raises(AttributeError), capture_keys_values(layers, store):
        pass
    assert untouched(controlnet)


def test_captured_tensors_are_released_with_the_store():
    fg, bg, store = tiny_controlnet(1), tiny_controlnet(2), {}
    gc.disable()
    try:
        with capture_keys_values(self_attention_layers(fg), store):
            run(fg)
        with inject_keys_values(self_attention_layers(bg), [store], regions):
            run(bg)
        last = weakref.ref(list(store.values())[5][0])
        store.clear()
        assert last() is None
    finally:
        gc.enable()

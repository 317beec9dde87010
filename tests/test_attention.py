"""KV-Injection against equation 9 in float64, on bare tensors and on real ControlNets."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib_ccn.attention import (
    capture_keys_values,
    inject_keys_values,
    region_attention,
    row_groups,
    self_attention_layers,
)

diffusers = pytest.importorskip("diffusers")
from diffusers.models.attention_processor import (  # noqa: E402
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
)

HEADS = 4


def equation_9(q2, k2, v2, k1, v1, mask, heads):
    """As the paper writes it: two masked attentions over all rows, blended by the mask."""

    def split(t):
        batch, tokens, channels = t.shape
        return t.double().reshape(batch, tokens, heads, channels // heads).permute(0, 2, 1, 3)

    def attend(keys, values, allowed):
        logits = split(q2) @ split(keys).mT / (q2.shape[-1] // heads) ** 0.5
        logits = logits + allowed.double().log()[:, None, None]
        top = logits.amax(-1, keepdim=True).clamp(min=-1e300)
        weights = (logits - top).exp()
        out = weights @ split(values) / weights.sum(-1, keepdim=True).clamp(min=1e-300)
        return out.permute(0, 2, 1, 3).flatten(2)

    foreground = attend(k1, v1, mask)
    keys, values = torch.cat((k2, k1), 1), torch.cat((v2, v1), 1)
    background = attend(keys, values, torch.cat((torch.ones_like(mask), ~mask), 1))
    return torch.where(mask[..., None], foreground, background)


def tensors(batch=2, tokens=30, channels=32, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (5, batch, tokens, channels)
    return [t.to(dtype) for t in torch.randn(shape, generator=generator)]


def random_mask(batch, tokens, fraction=0.3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, tokens, generator=generator) < fraction


# --------------------------------------------------------------------- region_attention


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
    groups = row_groups(mask, mask.device)
    found = {tuple(g.foreground.tolist()): g.rows.tolist() for g in groups}
    assert found == {(0,): [0, 2], (2,): [1]}
    (alone,) = row_groups(mask[:1], mask.device)
    assert alone.rows is None
    assert alone.background.tolist() == [1, 2]


# ------------------------------------------------------------------------------- layers


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


# ------------------------------------------------------- hooks on one attention of a host


class LdmAttention(nn.Module):
    """The call that ldm, sgm and Forge share: context, value and mask are positional."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        q, k = self.to_q(x), self.to_k(context)
        v = self.to_v(context if value is None else value)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        logits = logits if mask is None else logits + mask
        return self.to_out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attn1 = attention

    def forward(self, x, **kwargs):
        return self.attn1(x, **kwargs)


def host_block(kind, seed):
    torch.manual_seed(seed)
    if kind == "ldm":
        return Block(LdmAttention(32, HEADS)).double()
    processor = {"plain": AttnProcessor, "sdpa": AttnProcessor2_0}[kind]()
    return Block(Attention(32, heads=HEADS, dim_head=8, processor=processor)).double()


def inject(fg, bg, x_fg, x_bg, foreground, **kwargs):
    store = {}
    with torch.no_grad():
        with capture_keys_values(self_attention_layers(fg), store):
            fg(x_fg)
        layers = self_attention_layers(bg)
        with inject_keys_values(layers, store, lambda *_: foreground) as tally:
            return bg(x_bg, **kwargs), tally


def expected_output(fg, bg, x_fg, x_bg, mask):
    own, other = bg.attn1, fg.attn1
    with torch.no_grad():
        projected = (own.to_q(x_bg), own.to_k(x_bg), own.to_v(x_bg))
        out = equation_9(*projected, other.to_k(x_fg), other.to_v(x_fg), mask, HEADS)
        return (own.to_out if isinstance(own.to_out, nn.Linear) else own.to_out[0])(out)


@pytest.mark.parametrize("kind", ["ldm", "plain", "sdpa"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_hosts_own_attention_gives_equation_9(kind, fraction):
    fg, bg = host_block(kind, 1), host_block(kind, 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25, fraction)
    out, tally = inject(fg, bg, x_fg, x_bg, mask)
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))
    assert (tally.injected, tally.unchanged) == (1, 0)


def test_two_units_may_share_one_module():
    block = host_block("ldm", 1)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    out, _ = inject(block, block, x_fg, x_bg, mask)
    torch.testing.assert_close(out, expected_output(block, block, x_fg, x_bg, mask))


@pytest.mark.parametrize("name", ["context", "value", "mask"])
def test_a_call_that_is_no_plain_self_attention_is_left_alone(name):
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg, context = torch.randn(3, 2, 25, 32, dtype=torch.float64)
    extra = {name: torch.randn(25, 25).double() if name == "mask" else context}
    out, tally = inject(fg, bg, x_fg, x_bg, random_mask(2, 25), **extra)
    assert torch.equal(out, bg(x_bg, **extra))
    assert (tally.injected, tally.unchanged) == (0, 1)


def test_named_arguments_of_the_host_pass_through():
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    extra = {"context": None, "value": None, "mask": None, "transformer_options": {"a": 1}}
    out, _ = inject(fg, bg, x_fg, x_bg, mask, **extra)
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))


@pytest.mark.parametrize("what", ["no mask", "other batch", "other channels", "no hooks fired"])
def test_what_does_not_fit_runs_unchanged(what):
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x = torch.randn(2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    captured = (fg.attn1.to_k(x), fg.attn1.to_v(x))
    if what == "other batch":
        captured = tuple(t[:1] for t in captured)
    elif what == "other channels":
        captured = tuple(t[..., 1:] for t in captured)
    store = {"attn1": captured}
    if what == "no hooks fired":
        bg.attn1.forward = lambda x, context=None: x
    mask_for = (lambda *_: None) if what == "no mask" else (lambda *_: mask)
    with inject_keys_values(self_attention_layers(bg), store, mask_for) as tally:
        out = bg(x)
    assert torch.equal(out, bg(x))
    assert (tally.injected, tally.unchanged) == (0, 1)


def test_a_wrong_mask_is_refused_and_nothing_stays():
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x = torch.randn(2, 25, 32, dtype=torch.float64)
    for mask, error in ((torch.ones(2, 25), TypeError), (random_mask(2, 24), ValueError)):
        with pytest.raises(error, match=r"foreground_for\(\)"):
            inject(fg, bg, x, x, mask)
        assert untouched(bg)


def test_a_class_wide_replacement_of_forward_is_followed(monkeypatch):
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    calls = []
    plain = LdmAttention.forward

    def replacement(self, x, context=None, **kwargs):
        calls.append(x.shape[1])
        return plain(self, x, context, **kwargs)

    monkeypatch.setattr(LdmAttention, "forward", replacement)
    out, _ = inject(fg, bg, x_fg, x_bg, mask)
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))
    assert calls[0] == 25
    assert len(calls) == 1 + 2 * 2


def test_an_instance_forward_is_called_and_put_back():
    fg, bg = host_block("ldm", 1), host_block("ldm", 2)
    x_fg, x_bg = torch.randn(2, 2, 25, 32, dtype=torch.float64)
    mask = random_mask(2, 25)
    calls = []
    plain = bg.attn1.forward

    def patched(*args, **kwargs):
        calls.append(args[0].shape[1])
        return plain(*args, **kwargs)

    bg.attn1.forward = patched
    out, _ = inject(fg, bg, x_fg, x_bg, mask)
    assert bg.attn1.__dict__["forward"] is patched
    assert sum(calls) == 2 * 25
    torch.testing.assert_close(out, expected_output(fg, bg, x_fg, x_bg, mask))


def test_a_hosts_hook_on_the_block_fires_once():
    fg, bg = host_block("sdpa", 1), host_block("sdpa", 2)
    x = torch.randn(2, 25, 32, dtype=torch.float64)
    seen = []
    bg.attn1.register_forward_hook(lambda _m, _a, out: seen.append(out))
    out, _ = inject(fg, bg, x, x, random_mask(2, 25))
    assert len(seen) == 1
    assert seen[0] is out


# ------------------------------------------------------------------- hooks on ControlNets


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


def untouched(module):
    return all(
        "forward" not in part.__dict__ and not part._forward_hooks and not part._forward_pre_hooks
        for part in module.modules()
    )


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
    with inject_keys_values(layers, store, masks) as tally:
        run(bg, seed=6)
    for handle in handles:
        handle.remove()
    assert tally.injected == 6
    with torch.no_grad():
        for position, (_, name, attn) in enumerate(layers):
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
    with capture_keys_values(self_attention_layers(fg), store, start_layer=1):
        run(fg)
    assert set(store) == {entry.name for entry in layers[2:]}
    plain = run(bg)
    with inject_keys_values(layers, store, masks, start_layer=2) as tally:
        injected = run(bg)
    assert tally.injected == 2
    assert equal(injected[:-1], plain[:-1])
    assert not torch.equal(injected[-1], plain[-1])
    with inject_keys_values(layers, store, masks, start_layer=3):
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
        with inject_keys_values(layers, store, masks) as tally:
            seen = kept(bg, layers)
        for _, name, attn in layers:
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
        with inject_keys_values(layers, store, masks) as tally:
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
        with inject_keys_values(self_attention_layers(bg), store, masks):
            results.append(run(bg, seed=6))
    assert equal(*results)
    assert untouched(shared)


def test_a_new_capture_forgets_the_last_one():
    controlnet, store = tiny_controlnet(1), {"of the last call": ()}
    with capture_keys_values(self_attention_layers(controlnet), store, start_layer=9):
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
        "inject": lambda: inject_keys_values(layers, store, masks),
        "mask": lambda: inject_keys_values(layers, store, fail),
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
    layers.append(layers[0]._replace(module=nn.Identity()))
    store = {entry.name: (torch.zeros(1), torch.zeros(1)) for entry in layers}
    with pytest.raises(AttributeError), inject_keys_values(layers, store, masks):
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
        with inject_keys_values(self_attention_layers(bg), store, masks):
            run(bg)
        last = weakref.ref(list(store.values())[5][0])
        store.clear()
        assert last() is None
    finally:
        gc.enable()


def test_rows_without_a_usable_mask_are_a_group_of_their_own():
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]]).bool()
    usable = torch.tensor([True, False, True, False])
    groups = row_groups(mask, torch.device("cpu"), usable)
    found = [tuple(part.tolist() for part in group) for group in groups]
    assert found == [([0, 2], [0, 2], [1]), ([1, 3], [], [])]


def test_rows_without_a_usable_mask_run_as_ever():
    torch.manual_seed(0)
    unit = nn.Module()
    unit.attn1 = Attention(8, heads=2, dim_head=4)
    layers = self_attention_layers(unit)
    x, other = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    plain, store = unit.attn1(x), {}
    with capture_keys_values(layers, store):
        unit.attn1(other)
    mask = torch.tensor([1, 0, 0, 1, 0]).bool().expand(3, -1)
    usable = torch.tensor([False, True, False])
    with inject_keys_values(layers, store, lambda *_: mask, usable=usable):
        out = unit.attn1(x)
    torch.testing.assert_close(out[[0, 2]], plain[[0, 2]])
    assert not torch.allclose(out[1], plain[1])
    with inject_keys_values(layers, store, lambda *_: mask):
        everywhere = unit.attn1(x)
    torch.testing.assert_close(everywhere[1], out[1])

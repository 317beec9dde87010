"""KV-Injection (Cross-ControlNet, ICLR 2026, equation 9): regional self-attention in ControlNets.

`region_attention` is the equation on bare tensors. The two context managers apply it to a host's
ControlNets through hooks, with whichever attention function the host has chosen. Modules may be
shared: hooks act in the thread that set them, and other threads get the host's own attention.
"""

from collections.abc import Callable, Container, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hooks import (
    BY_COMPILATION,
    BY_FUSED_PROJECTIONS,
    COMPILED,
    answered,
    compiled_within,
    in_this_thread,
)

# Keys and values [B, N, C] by the name of the self-attention, `SelfAttention.name`.
KeyValueStore = MutableMapping[str, tuple[Tensor, Tensor]]
# (tokens, batch) -> boolean mask [batch, tokens] of a layer, or None to leave it alone.
# A mask that is already on the CPU saves a synchronisation with the accelerator.
ForegroundFor = Callable[[int, int], Tensor | None]

_HOOKED = ("to_k", "to_v")
_CONTEXT_NAMES = ("context", "encoder_hidden_states")


class SelfAttention(NamedTuple):
    """One inner self-attention: `layer` is the index of its spatial transformer.

    `name` is relative to the ControlNet, so that it is the same in two ControlNets for one
    backbone, whichever of its layers each of them has. `unheard` says why hooks on it are of no
    use, where that is so.
    """

    layer: int
    name: str
    module: nn.Module
    unheard: str = ""


class RowGroup(NamedTuple):
    """Batch rows that share one mask (`rows` None: all of them) and the tokens on its two sides.

    Rows without a usable mask are a group of their own, with no tokens on either side.
    """

    rows: Tensor | None
    foreground: Tensor
    background: Tensor


@dataclass
class InjectionTally:
    """How many self-attention calls were evaluated by region, and how many were not."""

    injected: int = 0
    unchanged: int = 0


def row_groups(
    foreground: Tensor, device: torch.device, usable: Tensor | None = None
) -> list[RowGroup]:
    """Group the batch of a boolean mask [B, N] by identical rows; indices land on `device`.

    `usable` [B] marks the rows whose mask counts (None: all).
    """
    batch = torch.arange(len(foreground))
    kept = batch if usable is None else batch[usable.cpu()]
    masks, which = torch.unique(foreground.detach().cpu()[kept], dim=0, return_inverse=True)
    nothing = batch[:0].to(device)
    groups = []
    for index, mask in enumerate(masks):
        rows = kept[which == index]
        fg, bg = (side.nonzero()[:, 0].to(device) for side in (mask, ~mask))
        groups.append(RowGroup(None if len(rows) == len(batch) else rows.to(device), fg, bg))
    if len(kept) < len(batch):
        groups.append(RowGroup(batch[~torch.isin(batch, kept)].to(device), nothing, nothing))
    return groups


def region_attention(
    q2: Tensor, k2: Tensor, v2: Tensor, k1: Tensor, v1: Tensor, foreground: Tensor, heads: int
) -> Tensor:
    """Equation 9, exactly: foreground rows attend K1[Mf], the others [K2 | K1[Mb]].

    `q2`, `k2`, `v2` are the background unit's, `k1`, `v1` the foreground unit's, all [B, N, C],
    `foreground` boolean [B, N] is Mf. Returns [B, N, C].
    With fg the foreground fraction it costs 2 - 3 fg + 2 fg^2 plain attentions.

    Raises TypeError for a dtype and ValueError for a shape that does not fit, naming the argument.
    """
    if not q2.is_floating_point():
        raise TypeError(f"q2 must have a floating dtype, not {q2.dtype}")
    if q2.ndim != 3 or heads < 1 or q2.shape[-1] % heads:
        raise ValueError(
            f"q2 must be [B, N, C], C divisible by heads={heads}, not {list(q2.shape)}"
        )
    named = {"q2": q2, "k2": k2, "v2": v2, "k1": k1, "v1": v1}
    for name, t in named.items():
        _check(name, t, q2.dtype, q2.shape)
    _check("foreground", foreground, torch.bool, q2.shape[:2])
    out = torch.empty_like(q2)
    for rows, fg, bg in row_groups(foreground, q2.device):
        q, k, v, k_fg, v_fg = (_take_rows(t, rows) for t in named.values())
        if fg.numel():
            part = _attend(_at(q, fg), _at(k_fg, fg), _at(v_fg, fg), heads)
            _put(out, rows, fg, part)
        if bg.numel():
            keys = torch.cat((k, _at(k_fg, bg)), dim=1)
            values = torch.cat((v, _at(v_fg, bg)), dim=1)
            _put(out, rows, bg, _attend(_at(q, bg), keys, values, heads))
    return out


def self_attention_layers(controlnet: nn.Module) -> list[SelfAttention]:
    """Every self-attention of a ControlNet in execution order, the middle block's last.

    These are the modules called `attn1` (ldm, sgm, Forge and diffusers alike). What stands before
    `.transformer_blocks` in a name is its spatial transformer: SD 1.5 has layers 0..6, SDXL 0..4
    with several inner blocks each. An architecture without such blocks gives an empty list.
    """
    layers: dict[str, int] = {}
    found = []
    compiled = compiled_within(controlnet)
    for name, module in controlnet.named_modules():
        if name.rpartition(".")[2] == "attn1" and hasattr(module, "to_k"):
            name = name.replace(COMPILED, "")
            transformer = name.partition(".transformer_blocks")[0]
            layer = layers.setdefault(transformer, len(layers))
            found.append(SelfAttention(layer, name, module, why_unheard(module, compiled)))
    return found


def why_unheard(attention: nn.Module, compiled: Container[nn.Module]) -> str:
    """Why hooks on an attention's projections are of no use; "" where they are of use."""
    if attention in compiled:
        return BY_COMPILATION
    # diffusers' flag of it stays when they are taken apart again; the processor does not.
    fused = "Fused" in type(getattr(attention, "processor", None)).__name__
    return BY_FUSED_PROJECTIONS if fused else ""


@contextmanager
def capture_keys_values(
    layers: Sequence[SelfAttention], store: KeyValueStore, start_layer: int = 0
) -> Iterator[None]:
    """Record K1 and V1 of each layer from `start_layer` on while the foreground unit runs.

    `store` is emptied first and filled by the layers' names, so that each layer of another unit
    finds its partner, whether the two share a module or one has more layers than the other.
    Nothing is copied and the unit's output is unchanged. The caller empties the store when the
    call is over.
    """
    store.clear()
    keys: dict[str, Tensor] = {}

    def record(name: str, projection: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        if projection == "to_k":
            keys[name] = output.detach()
        elif name in keys:
            store[name] = (keys.pop(name), output.detach())

    with ExitStack() as undo:
        for layer, name, module, _ in layers:
            if layer >= start_layer:
                for projection in _HOOKED:
                    hook = in_this_thread(partial(record, name, projection))
                    undo.callback(getattr(module, projection).register_forward_hook(hook).remove)
        yield


@contextmanager
def inject_keys_values(
    layers: Sequence[SelfAttention],
    store: KeyValueStore,
    foreground_for: ForegroundFor,
    start_layer: int = 0,
    usable: Tensor | None = None,
) -> Iterator[InjectionTally]:
    """Evaluate equation 9 in each layer from `start_layer` on while a background unit runs.

    The layer's own forward is called once for the foreground rows, its keys and values replaced
    by K1[Mf] and V1[Mf], and once for the others, K1[Mb] and V1[Mb] appended. No attention mask
    is involved, so every attention function of every host will do. A layer runs unchanged where
    nothing was captured (the foreground unit may have no such layer), the captured shape is not
    its own, `foreground_for` gives None, or the call is no plain self-attention; so do the batch
    rows that `usable` [B] leaves out. On exit every module is as it was, exceptions included.

    Raises TypeError or ValueError if `foreground_for` gives a tensor of another dtype or shape.
    """
    tally = InjectionTally()
    groups: dict[torch.Size, list[RowGroup]] = {}

    def groups_for(x: Tensor) -> list[RowGroup]:
        shape = x.shape[:2]
        if shape not in groups:
            mask = foreground_for(shape[1], shape[0])
            if mask is not None:
                _check("foreground_for()", mask, torch.bool, shape)
            groups[shape] = [] if mask is None else row_groups(mask, x.device, usable)
        return groups[shape]

    with ExitStack() as undo:
        for layer, name, module, _ in layers:
            if layer >= start_layer and name in store:
                region = _RegionForward(module, store[name], groups_for, tally)
                undo.enter_context(region.installed())
        yield tally


@dataclass
class _RegionForward:
    """The forward of one self-attention module during injection."""

    module: nn.Module
    captured: tuple[Tensor, Tensor]
    groups_for: Callable[[Tensor], list[RowGroup]]
    tally: InjectionTally
    guests: dict[str, Tensor] = field(default_factory=dict)
    replace: bool = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as undo:
            for name in _HOOKED:
                hook = in_this_thread(partial(self._projected, name))
                undo.callback(getattr(self.module, name).register_forward_hook(hook).remove)
            undo.enter_context(answered(self.module, "forward", self.forward))
            yield

    def forward(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = self._by_region(own, args, kwargs)
        if out is not None:
            self.tally.injected += 1
            return out
        self.tally.unchanged += 1
        return own(*args, **kwargs)

    def _by_region(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        x = _plain_input(args, kwargs)
        if x is None or any(t.shape[:2] != x.shape[:2] for t in self.captured):
            return None
        out = None
        for rows, fg, bg in self.groups_for(x):
            own, *captured = (_take_rows(t, rows) for t in (x, *self.captured))
            if not fg.numel() and not bg.numel():
                part = forward(own, *args[1:], **kwargs)
                out = part.new_empty(*x.shape[:2], part.shape[-1]) if out is None else out
                out[slice(None) if rows is None else rows] = part
                continue
            for tokens, replace in ((fg, True), (bg, False)):
                if not tokens.numel():
                    continue
                self.replace = replace
                self.guests = dict(zip(_HOOKED, (_at(t, tokens) for t in captured), strict=True))
                # Where both projections are replaced, one token of context is enough.
                context = own[:, :1] if replace else own
                part = self._visit(forward, *_with_context(_at(own, tokens), context, args, kwargs))
                if part is None:
                    return None
                if out is None:
                    out = part.new_empty(*x.shape[:2], part.shape[-1])
                _put(out, rows, tokens, part)
        return out

    def _visit(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """The host's attention with the guests' keys and values; None if it did not take them."""
        try:
            out = forward(*args, **kwargs)
            return None if self.guests else out
        finally:
            self.guests = {}

    def _projected(self, name: str, _module: nn.Module, _args: Any, own: Tensor) -> Tensor | None:
        guest = self.guests.get(name)
        if guest is None or guest.shape[-1] != own.shape[-1]:
            return None
        del self.guests[name]
        guest = guest.to(own)
        return guest if self.replace else torch.cat((own, guest), dim=1)


def _plain_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tokens [B, N, C] of an image self-attention; None with any context, value or mask."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    plain = len(tensors) == 1 and bool(args) and args[0] is tensors[0] and args[0].ndim == 3
    return tensors[0] if plain else None


def _with_context(
    x: Tensor, context: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for name in _CONTEXT_NAMES:
        if name in kwargs:
            return (x, *args[1:]), {**kwargs, name: context}
    return (x, context, *args[2:]), kwargs


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _take_rows(t: Tensor, rows: Tensor | None) -> Tensor:
    return t if rows is None else t.index_select(0, rows)


def _at(t: Tensor, tokens: Tensor) -> Tensor:
    return t if tokens.numel() == t.shape[1] else t.index_select(1, tokens)


def _put(out: Tensor, rows: Tensor | None, tokens: Tensor, part: Tensor) -> None:
    if rows is None:
        out.index_copy_(1, tokens, part)
    else:
        out[rows[:, None], tokens] = part


def _check(name: str, t: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if t.dtype is not dtype:
        raise TypeError(f"{name} must have dtype {dtype}, not {t.dtype}")
    if t.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(t.shape)}")

"""KV-Injection (Cross-ControlNet, ICLR 2026, equation 9): regional self-attention in ControlNets.

`region_attention` is the equation on bare tensors. What a session needs of a network's attention
is an `AttentionForm`: `UNET` here, and the joint attention of FLUX in joint_attention.py. Both
work on a host's ControlNets through hooks, with whichever attention function the host has chosen.
Modules may be shared: hooks act in the thread that set them, and other threads get the host's own
attention.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .foreground import CrossAttentionRecorder
from .hooks import COMPILED, answered, compiled_within, in_this_thread, why_unheard

# Keys and values by the name of the self-attention, `SelfAttention.name`; [B, N, C] in a UNet.
KeyValueStore = MutableMapping[str, tuple[Tensor, Tensor]]

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


class Regions:
    """Which tokens of each batch row are foreground, on one token grid.

    Kept by the session for as long as its mask stays the same; what a layer needs of it is made
    once for a device.

    Args:
        foreground: Mf, boolean [B, N] on the CPU: asking an accelerator for it would be a wait.
        usable: boolean [B] on the CPU, the rows whose mask counts; None: all of them.

    Raises:
        TypeError: a tensor is not boolean.
        ValueError: the shapes do not fit.
    """

    def __init__(self, foreground: Tensor, usable: Tensor | None = None) -> None:
        if foreground.ndim != 2:
            raise ValueError(f"foreground must be [B, N], not {list(foreground.shape)}")
        _check("foreground", foreground, torch.bool, foreground.shape)
        if usable is not None:
            _check("usable", usable, torch.bool, foreground.shape[:1])
        self.foreground = foreground
        self.usable = usable
        self._groups: dict[torch.device, list[RowGroup]] = {}

    @property
    def tokens(self) -> int:
        """N, the tokens of the grid."""
        return self.foreground.shape[1]

    def groups(self, device: torch.device) -> list[RowGroup]:
        """The batch by rows with the same mask; their indices are on `device`."""
        if device not in self._groups:
            self._groups[device] = _row_groups(self.foreground, device, self.usable)
        return self._groups[device]


# (tokens, batch) -> the regions of a layer, or None to leave it alone. Without tokens: those of
# the grid that has one for each pixel of the latent.
RegionsFor = Callable[[int | None, int], Regions | None]


@dataclass
class InjectionTally:
    """How many self-attention calls were evaluated by region, and how many were not."""

    injected: int = 0
    unchanged: int = 0


class AttentionForm(Protocol):
    """What a session asks of the kind of attention its networks have."""

    def layers(self, module: nn.Module) -> list[SelfAttention]:
        """The attention layers of a ControlNet that injection works on, in execution order."""

    def recorder(self, backbone: nn.Module, reduction: int) -> CrossAttentionRecorder:
        """What reads the backbone's attention to the prompt, in maps smaller by `reduction`."""

    def capture(
        self, layers: Sequence[SelfAttention], store: KeyValueStore
    ) -> AbstractContextManager[None]:
        """Keys and values of these layers are recorded while the foreground unit runs.

        `store` is emptied first. The caller empties it when the call is over.
        """

    def inject(
        self,
        layers: Sequence[SelfAttention],
        store: KeyValueStore,
        regions_for: RegionsFor,
        start_layer: int,
    ) -> AbstractContextManager[InjectionTally]:
        """They are injected in layers from `start_layer` on while a background unit runs."""


class UNetAttention:
    """Image tokens attend to each other, and to the prompt in a layer of its own (SD 1.5, SDXL)."""

    def layers(self, module: nn.Module) -> list[SelfAttention]:
        """Every self-attention of a ControlNet."""
        return self_attention_layers(module)

    def recorder(self, backbone: nn.Module, reduction: int) -> CrossAttentionRecorder:
        """What reads the UNet's cross-attention."""
        return CrossAttentionRecorder(backbone, reduction)

    def capture(
        self, layers: Sequence[SelfAttention], store: KeyValueStore
    ) -> AbstractContextManager[None]:
        """See `capture_keys_values`."""
        return capture_keys_values(layers, store)

    def inject(
        self,
        layers: Sequence[SelfAttention],
        store: KeyValueStore,
        regions_for: RegionsFor,
        start_layer: int,
    ) -> AbstractContextManager[InjectionTally]:
        """See `inject_keys_values`."""
        return inject_keys_values(layers, store, regions_for, start_layer)


UNET = UNetAttention()


def _row_groups(
    foreground: Tensor, device: torch.device, usable: Tensor | None = None
) -> list[RowGroup]:
    batch = torch.arange(len(foreground))
    kept = batch if usable is None else batch[usable]
    masks, which = torch.unique(foreground[kept], dim=0, return_inverse=True)
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
    for rows, fg, bg in Regions(foreground.cpu()).groups(q2.device):
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


@contextmanager
def capture_keys_values(layers: Sequence[SelfAttention], store: KeyValueStore) -> Iterator[None]:
    """Record K1 and V1 of these layers while the foreground unit runs.

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
        for _, name, module, _ in layers:
            for projection in _HOOKED:
                hook = in_this_thread(partial(record, name, projection))
                undo.callback(getattr(module, projection).register_forward_hook(hook).remove)
        yield


@contextmanager
def inject_keys_values(
    layers: Sequence[SelfAttention],
    store: KeyValueStore,
    regions_for: RegionsFor,
    start_layer: int = 0,
) -> Iterator[InjectionTally]:
    """Evaluate equation 9 in each layer from `start_layer` on while a background unit runs.

    The layer's own forward is called once for the foreground rows, its keys and values replaced
    by K1[Mf] and V1[Mf], and once for the others, K1[Mb] and V1[Mb] appended. No attention mask
    is involved, so every attention function of every host will do. A layer runs unchanged where
    nothing was captured (the foreground unit may have no such layer), the captured shape is not
    its own, `regions_for` gives None, or the call is no plain self-attention; so do batch rows
    whose mask is not usable. On exit every module is as it was, exceptions included.

    Raises ValueError if `regions_for` gives regions of another shape.
    """
    tally = InjectionTally()
    groups: dict[torch.Size, list[RowGroup]] = {}

    def groups_for(x: Tensor) -> list[RowGroup]:
        shape = x.shape[:2]
        if shape not in groups:
            regions = regions_for(shape[1], shape[0])
            if regions is not None:
                _check("regions_for()", regions.foreground, torch.bool, shape)
            groups[shape] = [] if regions is None else regions.groups(x.device)
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

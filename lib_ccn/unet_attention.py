"""KV-Injection (Cross-ControlNet, ICLR 2026, equation 9) in the self-attention of ControlNets.

The equation on bare tensors is in regional_attention.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import devices
from .attention import InjectionTally, KeyValueStore, RegionsFor, SelfAttention
from .hooks import (
    COMPILED,
    AttentionCalls,
    compiled_within,
    held,
    in_this_thread,
    listen,
    put_in_front,
    why_unheard,
)
from .recorder import CrossAttentionRecorder
from .regional_attention import Attend, attend_by_region, attend_marked
from .regions import Regions, at

_HOOKED = ("to_k", "to_v")
_CONTEXT_NAMES = ("context", "encoder_hidden_states")


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
        stores: Sequence[KeyValueStore],
        regions_for: RegionsFor,
        start_layer: int,
    ) -> AbstractContextManager[InjectionTally]:
        """See `inject_keys_values`."""
        return inject_keys_values(layers, stores, regions_for, start_layer)


UNET = UNetAttention()


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

    def record(layer: SelfAttention, name: str, _module: nn.Module, _args: Any, own: Any) -> None:
        if name == "to_k":
            keys[layer.name] = held(own)
        elif layer.name in keys:
            store[layer.name] = (keys.pop(layer.name), held(own))

    with ExitStack() as undo:
        undo.callback(_listen(layers, record))
        yield


def _listen(layers: Sequence[SelfAttention], hear: Callable[..., Any]) -> Callable[[], None]:
    """Until undone, `hear(layer, name, module, args, own)` gets the layers' keys and values."""
    return listen(
        [
            (getattr(layer.module, name), in_this_thread(partial(hear, layer, name)))
            for layer in layers
            for name in _HOOKED
        ]
    )


@contextmanager
def inject_keys_values(
    layers: Sequence[SelfAttention],
    stores: Sequence[KeyValueStore],
    regions_for: RegionsFor,
    start_layer: int = 0,
) -> Iterator[InjectionTally]:
    """Evaluate equation 9 in each layer from `start_layer` on while a background unit runs.

    There is a store for each place of the regions. The layer's own forward is called once, K1 and
    V1 put in front of its keys and values; where it asks torch's attention function, that is asked
    for each place. Where it asks another one, the forward is called for the rows of each place,
    keys and values replaced by K1[Mf] and V1[Mf], and again for the others, K1[Mb] and V1[Mb]
    appended; so it is where all rows are foreground, which is one call and less work. No attention
    mask is involved, so every attention function of every host will do.

    A layer runs unchanged where something was not captured (a unit in front may have no such
    layer), the captured shape is not its own, `regions_for` gives None, or the call is no plain
    self-attention; so do batch rows whose mask is not usable. On exit every module is as it was,
    exceptions included.

    Raises ValueError if `regions_for` gives regions of another shape.
    """
    injection = _Injection(stores, regions_for)
    reached = [
        layer
        for layer in layers
        if layer.layer >= start_layer and stores and all(layer.name in store for store in stores)
    ]
    thread = threading.get_ident()
    with ExitStack() as undo:
        undo.callback(_listen(reached, injection.projected))
        for layer in reached:
            forward = partial(injection.forward, layer)
            undo.callback(put_in_front(layer.module, "forward", forward, thread=thread))
        yield injection.tally


class _Injection:
    """Evaluates equation 9 in the layers of a background unit, one after the other."""

    def __init__(self, stores: Sequence[KeyValueStore], regions_for: RegionsFor) -> None:
        self.stores = stores
        self.regions_for = regions_for
        self.tally = InjectionTally()
        # By projection what is mixed into its output, and how: mix(own, guests).
        self.guests: dict[str, Sequence[Tensor]] = {}
        self.mix: Callable[[Tensor, Sequence[Tensor]], Tensor] = _instead
        # Called when the last guest is mixed in.
        self.complete: Callable[[], object] = _nothing

    def projected(
        self, _layer: SelfAttention, name: str, _module: nn.Module, _args: Any, own: Tensor
    ) -> Tensor | None:
        """A hook on `to_k` and `to_v`: what is due is mixed in."""
        guests = self.guests.get(name)
        if guests is None or any(guest.shape[-1] != own.shape[-1] for guest in guests):
            return None
        del self.guests[name]
        mixed = self.mix(own, [guest.to(own) for guest in guests])
        if not self.guests:
            self.complete()
        return mixed

    def forward(
        self, layer: SelfAttention, own: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Stands in front of a layer's own."""
        x = _plain_input(args, kwargs)
        captured = [store[layer.name] for store in self.stores]
        regions = None
        if x is not None and all(t.shape[:2] == x.shape[:2] for pair in captured for t in pair):
            regions = self._regions_of(x)
        out = None
        if x is not None and regions is not None:
            if layer.in_one and not regions.everywhere:
                out = self._in_one(partial(own, *args, **kwargs), x, captured, regions)
                layer.in_one = out is not None
            if out is None:
                out = self._by_side(own, args, kwargs, x, captured, regions)
                self.tally.by_side += out is not None
        if out is None:
            self.tally.unchanged += 1
            return own(*args, **kwargs)
        self.tally.injected += 1
        return out

    def _regions_of(self, x: Tensor) -> Regions | None:
        batch, tokens = x.shape[:2]
        regions = self.regions_for(tokens, batch)
        wanted = (len(self.stores), batch, tokens)
        if regions is not None and regions.places.shape != wanted:
            shape = list(regions.places.shape)
            raise ValueError(f"regions_for() must have shape {list(wanted)}, not {shape}")
        return regions

    def _in_one(
        self,
        forward: Callable[[], Any],
        x: Tensor,
        captured: Sequence[tuple[Tensor, Tensor]],
        regions: Regions,
    ) -> Any:
        """One call of the host's forward; None unless it asks torch's attention, once, for all."""
        batch, tokens = x.shape[:2]
        fitting = []

        def answer(attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            shapes = [tuple(t.shape) for t in (query, key, value)]
            asked = (batch, *shapes[0][1:2], tokens, *shapes[0][3:])
            given = (*asked[:2], (regions.count + 1) * tokens, *asked[3:])
            fits = query.ndim == 4 and shapes == [asked, given, given] and not self.guests
            fitting.append(fits)
            if not fits:
                return attend(query, key, value)
            if marked:
                scale = getattr(attend, "keywords", {}).get("scale")
                return attend_marked(query, key, value, regions, attend, scale)
            return attend_by_region(query, key, value, regions, attend)

        marked = prefers_marks(x.device)
        self.mix = lambda own, guests: torch.cat(
            (*(guests if marked else [regions.in_order(guests, 1)]), own), 1
        )
        calls = AttentionCalls(answer)
        with ExitStack() as listening:
            # Not before: listening makes every function of torch's a little slower.
            self.complete = partial(listening.enter_context, calls)
            out = self._visit(forward, list(zip(*captured, strict=True)))
        return out if fitting == [True] and not calls.masked else None

    def _by_side(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        x: Tensor,
        captured: Sequence[tuple[Tensor, Tensor]],
        regions: Regions,
    ) -> Tensor | None:
        """A call of the host's forward for the rows of each place, and one for the others."""
        out = None
        for group in regions.groups(x.device):
            own, *taken = (
                t if group.rows is None else t[group.rows]
                for t in (x, *(t for pair in captured for t in pair))
            )
            pairs = list(zip(taken[::2], taken[1::2], strict=True))
            part = None if group.is_usable else forward(own, *args[1:], **kwargs)
            # Where both projections are replaced, one token of context is enough.
            asked = [
                (tokens, _instead, own[:, :1], [pair])
                for tokens, pair in zip(group.places, pairs, strict=True)
            ]
            for tokens, mix, context, guests in [*asked, (group.rest, _behind, own, pairs)]:
                if not len(tokens):
                    continue
                self.mix = mix
                given = _with_context(at(own, tokens, 1), context, args, kwargs)
                there = [[at(t, tokens, 1) for t in pair] for pair in guests]
                rows = self._visit(
                    partial(forward, *given[0], **given[1]), list(zip(*there, strict=True))
                )
                if rows is None:
                    return None
                if len(tokens) == own.shape[1]:
                    part = rows
                    continue
                if part is None:
                    part = rows.new_empty(*own.shape[:2], rows.shape[-1])
                part.index_copy_(1, tokens, rows)
            assert part is not None
            if group.rows is None:
                return part
            out = part.new_empty(*x.shape[:2], part.shape[-1]) if out is None else out
            out[group.rows] = part
        return out

    def _visit(self, forward: Callable[[], Any], guests: Sequence[Sequence[Tensor]]) -> Any:
        """The host's attention with these keys and values mixed in; None if it took none."""
        self.guests = dict(zip(_HOOKED, guests, strict=True))
        try:
            out = forward()
            return None if self.guests else out
        finally:
            self.guests, self.complete = {}, _nothing


def _nothing() -> None:
    pass


def prefers_marks(device: torch.device) -> bool:
    """Whether one attention over everything costs less there than one for each side.

    So it does where launches count and no table of N x 2N logits is made: CUDA's kernels make none.
    """
    return devices.is_cuda(device)


def _instead(_own: Tensor, guests: Sequence[Tensor]) -> Tensor:
    return guests[0]


def _behind(own: Tensor, guests: Sequence[Tensor]) -> Tensor:
    return torch.cat((own, *guests), 1)


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

"""KV-Injection and the word's map in joint attention (FLUX): text and image in one sequence.

Cross-ControlNet (ICLR 2026), appendix A.5. Equation 9 speaks of a self-attention over image
tokens; a joint attention's tokens are [text | image]. With Qt, Kt, Vt for the text's part of the
background unit:

    text rows:        softmax(Qt [Kt | K2]^T / sqrt(d)) [Vt | V2]                  as ever
    foreground rows:  softmax(Q2 [Kt | K1[Mf]]^T / sqrt(d)) [Vt | V1[Mf]]
    background rows:  softmax(Q2 [Kt | K2 | K1[Mb]]^T / sqrt(d)) [Vt | V2 | V1[Mb]]

**[choice]** Image rows keep the background unit's own text keys, as in a UNet, where the text
comes through a cross-attention of its own that injection does not touch; the foreground unit's
text keys go nowhere.

Queries, keys and values are taken where the attention function gets them: normalised, and rotated
by their positions, which are the same for both units. Only torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attention import InjectionTally, KeyValueStore, RegionsFor, SelfAttention
from .hooks import (
    BY_COMPILATION,
    COMPILED,
    Answer,
    AttentionCalls,
    answered,
    compiled_within,
    held,
    listen,
)
from .recorder import CrossAttentionRecorder
from .regional_attention import Attend, attend_by_region
from .regions import Regions


def joint_attention_layers(controlnet: nn.Module) -> list[SelfAttention]:
    """Every joint attention of a FLUX ControlNet in execution order: double, then single stream.

    Each is a layer of its own, so that a start layer counts attention blocks. A name tells the
    stream and the place in it: "single_transformer_blocks.0.attn" is the first single-stream block
    however many double-stream ones stand before it. An architecture without such blocks gives an
    empty list.
    """
    found = [
        (name.replace(COMPILED, ""), module)
        for name, module in controlnet.named_modules()
        if name.rpartition(".")[2] == "attn" and hasattr(module, "norm_k")
    ]
    compiled = compiled_within(controlnet)
    return [
        SelfAttention(number, name, module, BY_COMPILATION if module in compiled else "")
        for number, (name, module) in enumerate(found)
    ]


# (module, answer) -> a context in which the attention inside the module's forward is answered.
Answered = Callable[[nn.Module, Answer], AbstractContextManager[None]]


def torch_attention_answered(module: nn.Module, answer: Answer) -> AbstractContextManager[None]:
    """An `Answered` where the module uses torch's own attention function."""

    def forward(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with AttentionCalls(answer):
            return own(*args, **kwargs)

    return answered(module, "forward", forward)


@contextmanager
def capture_joint_keys_values(
    layers: Sequence[SelfAttention],
    store: KeyValueStore,
    attention_answered: Answered = torch_attention_answered,
) -> Iterator[None]:
    """Record keys and values of these layers while the foreground unit runs.

    `store` is emptied first and filled by the layers' names, each tensor [B, heads, text + image,
    d]. Nothing is copied and the unit's output is unchanged.
    """
    store.clear()

    def record(name: str, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        store[name] = (held(key), held(value))
        return attend(query, key, value)

    with ExitStack() as undo:
        for layer in layers:
            undo.enter_context(attention_answered(layer.module, partial(record, layer.name)))
        yield


@contextmanager
def inject_joint_keys_values(
    layers: Sequence[SelfAttention],
    stores: Sequence[KeyValueStore],
    regions_for: RegionsFor,
    start_layer: int = 0,
    attention_answered: Answered = torch_attention_answered,
) -> Iterator[InjectionTally]:
    """Evaluate equation 9 in each layer from `start_layer` on while a background unit runs.

    There is a store for each place of the regions. Image tokens are as many as
    `regions_for(None, batch)` has, at the end of the sequence. A layer runs unchanged where
    something was not captured (a unit in front may have no such block), the captured shape is not
    its own, or there are no regions; so do batch rows whose mask is not usable. On exit every
    module is as it was, exceptions included.
    """
    tally = InjectionTally()
    known: dict[int, Regions | None] = {}

    def regions_of(batch: int) -> Regions | None:
        if batch not in known:
            known[batch] = regions_for(None, batch)
        return known[batch]

    def inject(name: str, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        regions = regions_of(len(query))
        if regions is not None:
            image = regions.tokens
            guests = [[t[:, :, -image:].to(query) for t in store[name]] for store in stores]
            like = (*query.shape[:2], image, query.shape[3])
            fits = all(t.shape == like for pair in guests for t in pair)
            if fits and key.shape == query.shape and query.shape[2] >= image:
                tally.injected += 1
                keys, values = (
                    torch.cat((regions.in_order(images, 2), own), 2)
                    for images, own in zip(zip(*guests, strict=True), (key, value), strict=True)
                )
                return attend_by_region(query, keys, values, regions, attend)
        tally.unchanged += 1
        return attend(query, key, value)

    with ExitStack() as undo:
        for layer in layers:
            captured = bool(stores) and all(layer.name in store for store in stores)
            if layer.layer >= start_layer and captured:
                undo.enter_context(attention_answered(layer.module, partial(inject, layer.name)))
        yield tally


class JointAttention:
    """Text and image tokens attend in one sequence (FLUX); an `AttentionForm`.

    Args:
        listened: what to enter, given the layers, so that they use torch's own attention function
            while keys and values are captured or injected.
        attention_answered: how a layer's attention is answered.
    """

    def __init__(
        self,
        listened: Callable[[Sequence[SelfAttention]], AbstractContextManager[None]] = (
            lambda _layers: nullcontext()
        ),
        attention_answered: Answered = torch_attention_answered,
    ) -> None:
        self.listened = listened
        self.attention_answered = attention_answered

    def layers(self, module: nn.Module) -> list[SelfAttention]:
        """Every joint attention of a ControlNet."""
        return joint_attention_layers(module)

    def recorder(self, backbone: nn.Module, reduction: int) -> JointAttentionRecorder:
        """What reads the transformer's attention to the text; its maps are never reduced."""
        return JointAttentionRecorder(backbone)

    @contextmanager
    def capture(self, layers: Sequence[SelfAttention], store: KeyValueStore) -> Iterator[None]:
        """See `capture_joint_keys_values`."""
        capturing = capture_joint_keys_values(layers, store, self.attention_answered)
        with self.listened(layers), capturing:
            yield

    @contextmanager
    def inject(
        self,
        layers: Sequence[SelfAttention],
        stores: Sequence[KeyValueStore],
        regions_for: RegionsFor,
        start_layer: int,
    ) -> Iterator[InjectionTally]:
        """See `inject_joint_keys_values`."""
        injecting = inject_joint_keys_values(
            layers, stores, regions_for, start_layer, self.attention_answered
        )
        with self.listened(layers), injecting as tally:
            yield tally


class JointAttentionRecorder(CrossAttentionRecorder):
    """Mean attention of image queries to text keys in FLUX's double-stream blocks.

    The probabilities are over the text tokens alone **[choice]**: what a UNet's cross-attention
    is, and a small part of the whole joint map. Queries and text keys are read behind their
    normalisation, so that any attention function of the host's will do, and rotated here. The
    "latent size" of `begin_call` is the grid of the image tokens, whose maps these are.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(transformer, reduction=1)
        self._rotation: Any = None

    def attentions(self, network: nn.Module) -> list[nn.Module]:
        """The attention of every double-stream block, whose text has a key of its own."""
        return [
            module
            for name, module in network.named_modules()
            if name.rpartition(".")[2] == "attn" and hasattr(module, "norm_added_k")
        ]

    def why_unheard(self, attention: nn.Module, compiled: Container[nn.Module]) -> str:
        """Why an attention cannot be read; fused projections are normalised as ever."""
        return BY_COMPILATION if attention in compiled else ""

    def pause(self) -> None:
        """Record nothing until the next `begin_call`; what was recorded stays."""
        super().pause()
        self._rotation = None

    def set_hooks(self, undo: ExitStack) -> None:
        """Hear the blocks' normalised queries and text keys, and their rotation, until undone."""
        modules: list[Any] = self.layers
        for m in modules:
            undo.callback(m.register_forward_pre_hook(self._on_call, with_kwargs=True).remove)
        hooks = [(m.norm_q, partial(self._on_query, m)) for m in modules]
        undo.callback(
            listen([*hooks, *((m.norm_added_k, partial(self._on_key, m)) for m in modules)])
        )

    def _on_call(self, _layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if self._here:
            self._rotation = kwargs.get("image_rotary_emb")

    def _on_query(self, layer: nn.Module, _norm: nn.Module, _args: Any, query: Any) -> None:
        if self._here and self._grid is not None:
            fits = query.shape[1] == self._grid[0] * self._grid[1]
            self._query = (layer, query) if fits else None

    def placed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated; image queries and text keys are given as [layers, rows, tokens, heads, d]."""
        if self._rotation is not None:
            cos, sin = self._rotation
            tokens, text = query.shape[2], key.shape[2]
            query = rotate(query, cos[-tokens:], sin[-tokens:])
            key = rotate(key, cos[:text], sin[:text])
        return query.flatten(-2), key.flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [..., tokens, heads, d] whose pairs of neighbours are turned together.

    `cos` and `sin` are [tokens, d], each angle twice.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), -1).flatten(-2)
    cos, sin = (t.to(x.device)[:, None] for t in (cos, sin))
    return (x.float() * cos + turned.float() * sin).to(x.dtype)

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
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .attention import (
    ForegroundFor,
    InjectionTally,
    KeyValueStore,
    RowGroup,
    SelfAttention,
    row_groups,
)
from .foreground import CrossAttentionRecorder
from .hooks import BY_COMPILATION, COMPILED, answered, compiled_within

# (query, key, value), each [B, heads, tokens, d], to the result in the query's shape.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def joint_region_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key1: Tensor,
    value1: Tensor,
    groups: Sequence[RowGroup],
    attend: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """Equation 9 in a joint attention, as this module's docstring has it.

    Args:
        query: [B, heads, text + image, d] of the background unit, text first; `key` and `value`
            are alike.
        key1: [B, heads, image, d] of the foreground unit; `value1` is alike.
        groups: the batch by equal masks, from `row_groups` of Mf [B, image]. A group without
            tokens on either side is attended as ever.
        attend: the attention function.

    Returns:
        The attention's result, in the shape of `query`.
    """
    text = query.shape[2] - key1.shape[2]
    out = None
    for rows, fg, bg in groups:
        q, k, v, k1, v1 = (
            t if rows is None else t.index_select(0, rows)
            for t in (query, key, value, key1, value1)
        )
        if not fg.numel() and not bg.numel():
            part = attend(q, k, v)
        else:
            part = torch.empty_like(q)
            if text:
                part[:, :, :text] = attend(q[:, :, :text], k, v)
            if fg.numel():
                keys = torch.cat((k[:, :, :text], k1.index_select(2, fg)), 2)
                values = torch.cat((v[:, :, :text], v1.index_select(2, fg)), 2)
                part[:, :, text + fg] = attend(q.index_select(2, text + fg), keys, values)
            if bg.numel():
                keys = torch.cat((k, k1.index_select(2, bg)), 2)
                values = torch.cat((v, v1.index_select(2, bg)), 2)
                part[:, :, text + bg] = attend(q.index_select(2, text + bg), keys, values)
        if rows is None:
            return part
        out = torch.empty_like(query) if out is None else out
        out[rows] = part
    return query if out is None else out


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


@contextmanager
def capture_joint_keys_values(
    layers: Sequence[SelfAttention], store: KeyValueStore, image_tokens: int, start_layer: int = 0
) -> Iterator[None]:
    """Record the image tokens' K1 and V1 of each layer while the foreground unit runs.

    `store` is emptied first and filled by the layers' names, each tensor [B, heads, image tokens,
    d]. Nothing is copied and the unit's output is unchanged.
    """
    store.clear()

    def record(name: str, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if key.shape[2] >= image_tokens:
            store[name] = (
                key.detach()[:, :, -image_tokens:],
                value.detach()[:, :, -image_tokens:],
            )
        return attend(query, key, value)

    with ExitStack() as undo:
        for layer, name, module, _ in layers:
            if layer >= start_layer:
                undo.enter_context(_attention_answered(module, partial(record, name)))
        yield


@contextmanager
def inject_joint_keys_values(
    layers: Sequence[SelfAttention],
    store: KeyValueStore,
    foreground_for: ForegroundFor,
    image_tokens: int,
    start_layer: int = 0,
    usable: Tensor | None = None,
) -> Iterator[InjectionTally]:
    """Evaluate equation 9 in each layer from `start_layer` on while a background unit runs.

    A layer runs unchanged where nothing was captured (the foreground unit may have no such block),
    the captured shape is not its own, or `foreground_for(image tokens, batch)` gives None; so do
    the batch rows that `usable` [B] leaves out. On exit every module is as it was, exceptions
    included.
    """
    tally = InjectionTally()
    groups: dict[int, list[RowGroup]] = {}

    def groups_for(batch: int, device: torch.device) -> list[RowGroup]:
        if batch not in groups:
            mask = foreground_for(image_tokens, batch)
            groups[batch] = [] if mask is None else row_groups(mask, device, usable)
        return groups[batch]

    def inject(name: str, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key1, value1 = (t.to(query) for t in store[name])
        like = (*query.shape[:2], image_tokens, query.shape[3])
        fits = key1.shape == like and key.shape == query.shape and query.shape[2] >= image_tokens
        found = groups_for(len(query), query.device) if fits else []
        if not found:
            tally.unchanged += 1
            return attend(query, key, value)
        tally.injected += 1
        return joint_region_attention(query, key, value, key1, value1, found, attend)

    with ExitStack() as undo:
        for layer, name, module, _ in layers:
            if layer >= start_layer and name in store:
                undo.enter_context(_attention_answered(module, partial(inject, name)))
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

    def hooks_on(self, layer: nn.Module) -> list[RemovableHandle]:
        """Listen to a block's normalised queries and text keys, and to its rotation."""
        modules: Any = layer
        return [
            modules.register_forward_pre_hook(self._on_call, with_kwargs=True),
            modules.norm_q.register_forward_hook(partial(self._on_query, layer)),
            modules.norm_added_k.register_forward_hook(partial(self._on_key, layer)),
        ]

    def _on_call(self, _layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if self._here:
            self._rotation = kwargs.get("image_rotary_emb")

    def _on_query(self, layer: nn.Module, _norm: nn.Module, _args: Any, query: Any) -> None:
        if self._here and self._grid is not None:
            fits = query.shape[1] == self._grid[0] * self._grid[1]
            self._pending = (layer, query) if fits else None

    @torch.no_grad()
    def _add(self, layer: Any, query: Tensor, key: Tensor) -> None:
        """`query` [B, image, heads, d] and text `key` [B, text, heads, d]."""
        if self._rotation is not None:
            cos, sin = self._rotation
            query = rotate(query, cos[-query.shape[1] :], sin[-query.shape[1] :])
            key = rotate(key, cos[: key.shape[1]], sin[: key.shape[1]])
        super()._add(layer, query.flatten(2), key.flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [B, tokens, heads, d] whose pairs of neighbours are turned together.

    `cos` and `sin` are [tokens, d], each angle twice.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), -1).flatten(-2)
    cos, sin = (t.to(x.device)[:, None] for t in (cos, sin))
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


class _AttentionCalls(TorchFunctionMode):
    """Lets `answer(attend, query, key, value)` stand in for torch's attention function.

    A call with a mask is not for us.
    """

    def __init__(self, answer: Callable[[Attend, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        if named.get("attn_mask") is not None or named.get("is_causal"):
            return func(*args, **kwargs)
        query, key, value = (named.pop(name) for name in names[:3])
        return self.answer(partial(func, **named), query, key, value)


@contextmanager
def _attention_answered(
    module: nn.Module, answer: Callable[[Attend, Tensor, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Attention inside the module's forward is answered; afterwards the module is as it was."""

    def forward(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _AttentionCalls(answer):
            return own(*args, **kwargs)

    with answered(module, "forward", forward):
        yield

"""The joint attention of FLUX as ComfyUI has it: one projection, one attention function.

A block's queries, keys and values reach that function normalised and rotated, text in front of
the image. There they are taken, so that any attention that ComfyUI was started with will do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from comfy.ldm.flux import math as flux_math
from torch import Tensor, nn

from ..attention import SelfAttention
from ..hooks import BY_COMPILATION, COMPILED, Answer, answered, compiled_within
from ..joint_attention import JointAttention, JointAttentionRecorder
from ..regional_attention import Attend

_BLOCK = re.compile(r"(?:double|single)_blocks\.\d+")
_FUNCTION = "optimized_attention"  # of the module that all blocks ask


def is_flux(network: nn.Module) -> bool:
    """Whether a network has blocks of this kind."""
    return hasattr(network, "double_blocks") and hasattr(network, "single_blocks")


def attention_answered(module: nn.Module, answer: Answer) -> AbstractContextManager[None]:
    """An `Answered` for a block of FLUX."""

    def forward(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with answered(flux_math, _FUNCTION, partial(_answer, answer)):
            return own(*args, **kwargs)

    return answered(module, "forward", forward)


def _answer(
    answer: Answer,
    own: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Any = None,
    **more: Any,
) -> Any:
    """One call of the host's function, for [B, heads, tokens, d]; [B, tokens, C] comes back."""
    if mask is not None or not more.get("skip_reshape") or more.get("skip_output_reshape"):
        return own(query, key, value, heads, mask=mask, **more)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        made: Tensor = own(query, key, value, heads, skip_output_reshape=True, **more)
        return made

    return answer(attend, query, key, value).transpose(1, 2).flatten(2)


class FluxRecorder(JointAttentionRecorder):
    """Mean attention of image queries to text keys in the double-stream blocks."""

    def attentions(self, network: nn.Module) -> list[nn.Module]:
        """Every double-stream block."""
        return list(getattr(network, "double_blocks", ()))

    def why_unheard(self, attention: nn.Module, compiled: Container[nn.Module]) -> str:
        """Why a block cannot be read; "" where it can."""
        return BY_COMPILATION if attention in compiled else ""

    def set_hooks(self, undo: ExitStack) -> None:
        """Hear the blocks' attention function until undone."""
        for layer in self.layers:
            answer = partial(self._on_attention, layer)
            undo.enter_context(attention_answered(layer, answer))

    def _on_attention(
        self, layer: nn.Module, attend: Attend, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        grid = self._grid
        image = 0 if grid is None else grid[0] * grid[1]
        if self._here and grid is not None and 0 < image < query.shape[2]:
            text = query.shape[2] - image
            side = query[:, :, -image:].transpose(1, 2).flatten(2)
            self.tokens.add(image)
            whose = _Heads(query.shape[1])
            self._query = (whose, side)
            self._on_key(whose, layer, (), key[:, :, :text].transpose(1, 2).flatten(2))
        return attend(query, key, value)

    def placed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """They come rotated."""
        return query, key


class _Heads(nn.Module):
    """What a recorder asks of an attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads


class FluxAttention(JointAttention):
    """An `AttentionForm` for FLUX in ComfyUI."""

    def __init__(self) -> None:
        super().__init__(attention_answered=attention_answered)

    def layers(self, module: nn.Module) -> list[SelfAttention]:
        """Every block in execution order: double, then single stream."""
        compiled = compiled_within(module)
        found = [
            (name.replace(COMPILED, ""), block)
            for name, block in module.named_modules()
            if _BLOCK.fullmatch(name.replace(COMPILED, ""))
        ]
        return [
            SelfAttention(number, name, block, BY_COMPILATION if block in compiled else "")
            for number, (name, block) in enumerate(found)
        ]

    def recorder(self, backbone: nn.Module, reduction: int) -> FluxRecorder:
        """What reads the transformer's attention to the text; its maps are never reduced."""
        return FluxRecorder(backbone)


FLUX = FluxAttention()

"""What a session needs of a network's attention, whatever its kind: an `AttentionForm`.

A UNet's is in unet_attention.py, the joint attention of FLUX in joint_attention.py. Both work on a
host's ControlNets through hooks, with whichever attention function the host has chosen. Modules
may be shared: hooks act in the thread that set them, and other threads get the host's own
attention.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .recorder import CrossAttentionRecorder
from .regions import Regions

# Keys and values by the name of the self-attention, `SelfAttention.name`; [B, N, C] in a UNet.
KeyValueStore = MutableMapping[str, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class SelfAttention:
    """One inner self-attention of a ControlNet.

    Attributes:
        layer: the index of its spatial transformer.
        name: relative to the ControlNet, so that it is the same in two ControlNets for one
            backbone, whichever of its layers each of them has.
        module: the attention itself.
        unheard: why hooks on it are of no use; "" where they are of use.
        in_one: whether one call of its forward may do; False once that is known not to reach
            torch's own attention function.
    """

    layer: int
    name: str
    module: nn.Module
    unheard: str = ""
    in_one: bool = True


# (tokens, batch) -> the regions of a layer, or None to leave it alone. Without tokens: those of
# the grid that has one for each pixel of the latent.
RegionsFor = Callable[[int | None, int], Regions | None]


@dataclass
class InjectionTally:
    """How many self-attention calls were evaluated by region, and how many were not.

    `by_side` counts those of the first whose forward was called for each side.
    """

    injected: int = 0
    unchanged: int = 0
    by_side: int = 0


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
        stores: Sequence[KeyValueStore],
        regions_for: RegionsFor,
        start_layer: int,
    ) -> AbstractContextManager[InjectionTally]:
        """They are injected in layers from `start_layer` on while a background unit runs.

        There is a store for each place of the regions, of the unit that is in front there.
        """

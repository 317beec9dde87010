"""What a session is told: the units of a generation, each UNet call, and the sampler's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor, nn

from .attention import SelfAttention


class Role(Enum):
    """What a unit is in the method."""

    FOREGROUND = "foreground"
    BACKGROUND = "background"
    BYSTANDER = "bystander"


@dataclass(eq=False)
class Unit:
    """One ControlNet of a generation.

    Attributes:
        module: the ControlNet; two units may share one.
        name: how the log calls it.
        eligible: False for what cannot be fused (a T2I-Adapter, say): a bystander, whose
            residuals are added as the host would.
        condition: [B, 3, H, W] in [0, 1], one row per row of the ControlNet's batch or a single
            one; only the mask source "silhouette" looks at it.
        role: set by the session.
    """

    module: nn.Module
    name: str = ""
    eligible: bool = True
    condition: Tensor | None = None
    role: Role = Role.BYSTANDER
    layers: list[SelfAttention] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Call:
    """What the adapter knows about one call of the UNet.

    Attributes:
        latent_size: (h, w) of the latents, from the tensor itself.
        step: the sampler's step, from 0; several calls may share one.
        pictures: for each row of the ControlNets' batch, which picture it belongs to.
        conditional: the conditional rows of the UNet's batch, one per picture in their order.
    """

    latent_size: tuple[int, int]
    step: int
    pictures: Sequence[int]
    conditional: Sequence[int]


@dataclass
class StepClock:
    """Counts a sampler's own steps where the host counts calls.

    Attributes:
        order: calls that make one step (2 for Heun and DPM2; their last step may have fewer).
        calls: completed calls.
    """

    order: int = 1
    calls: int = 0

    @property
    def step(self) -> int:
        """The current step, from 0."""
        return self.calls // max(1, self.order)

    def tick(self) -> None:
        """One call of the sampler's step function is done."""
        self.calls += 1

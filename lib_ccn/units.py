"""The units of a generation and their roles, each UNet call, and the sampler's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor, nn

from .attention import AttentionForm, SelfAttention
from .prompt import TokenizedPrompt
from .settings import Settings, SettingsError, fields


class Role(Enum):
    """What a unit is in the method.

    The foreground unit's keys and values go into the background units' self-attention. A unit
    that is fused only takes part in the fusion; a bystander's residuals are added, as ever.
    """

    FOREGROUND = "foreground"
    BACKGROUND = "background"
    FUSED = "fused only"
    BYSTANDER = "bystander"


@dataclass(eq=False)
class Unit:
    """One ControlNet of a generation.

    Attributes:
        module: the ControlNet; two units may share one.
        name: how the log calls it.
        eligible: False for what cannot be fused (a T2I-Adapter, say): a bystander, whose
            residuals are added as the host would.
        condition: [B, 3, H, W] in [0, 1], one row per row of the ControlNet's batch, per picture
            (fewer are repeated) or for all; only the mask source "silhouette" looks at it.
        number: how the host counts it, from 0, which is what the settings name; None takes its
            place in the session.
        role: set by the session.
    """

    module: nn.Module
    name: str = ""
    eligible: bool = True
    condition: Tensor | None = None
    number: int | None = None
    role: Role = Role.BYSTANDER
    layers: list[SelfAttention] = field(default_factory=list, repr=False)


def assign_roles(units: Sequence[Unit], settings: Settings, attention: AttentionForm) -> None:
    """Give each unit its role, its number where it has none, and the layers to inject into.

    Raises:
        SettingsError: `foreground_unit` or `background_unit` names no eligible unit.
    """
    eligible = [unit for unit in units if unit.eligible]
    for place, unit in enumerate(units):
        if unit.number is None:
            unit.number = place
    for unit in eligible:
        unit.role = Role.FUSED
        unit.layers = attention.layers(unit.module)
    behind = _named(eligible, "background_unit", settings)
    others = [unit for unit in eligible if unit is not behind]
    front = _named(eligible, "foreground_unit", settings) or (others[0] if others else None)
    for unit in eligible if behind is None else [behind]:
        unit.role = Role.BACKGROUND
    if front is not None:
        front.role = Role.FOREGROUND


def _named(eligible: Sequence[Unit], setting: str, settings: Settings) -> Unit | None:
    """The unit that a setting names by its number; None for "auto"."""
    chosen = getattr(settings, setting)
    if chosen == "auto":
        return None
    named = {unit.number or 0: unit for unit in eligible}
    if chosen not in named:
        raise SettingsError(setting, chosen, f"'auto' or one of {sorted(named)}")
    return named[chosen]


def in_front(units: Sequence[Unit]) -> Unit | None:
    """The foreground unit."""
    return next((unit for unit in units if unit.role is Role.FOREGROUND), None)


def partners(units: Sequence[Unit], start_layer: int) -> list[SelfAttention]:
    """The foreground unit's layers that injection asks for.

    A start layer counts the background unit's own: of two ControlNets for one backbone, one may
    have more layers than the other.
    """
    foreground = in_front(units)
    wanted = {
        layer.name
        for unit in units
        for layer in unit.layers
        if unit.role is Role.BACKGROUND and layer.layer >= start_layer
    }
    return [layer for layer in foreground.layers if layer.name in wanted] if foreground else []


def why_unreached(units: Sequence[Unit], start_layer: int) -> list[str]:
    """Leave layers alone that hooks cannot reach; say why nothing is injected, whatever the mask.

    Empty where something can be.
    """
    background = [unit for unit in units if unit.role is Role.BACKGROUND]
    reasons = []
    for unit in [*background, *filter(None, [in_front(units)])] if background else []:
        reason = next((layer.unheard for layer in unit.layers if layer.unheard), "")
        if reason:
            unit.layers = [layer for layer in unit.layers if not layer.unheard]
            reasons.append(f"the attention of {unit.name} {reason}: nothing is injected there")
    if reasons or not background:
        return reasons
    last = max((layer.layer for unit in background for layer in unit.layers), default=-1)
    if 0 <= last < start_layer:
        label = fields()["start_layer"].label.lower()
        return [f"the {label} is {start_layer}, beyond the last ({last}): nothing is injected"]
    if in_front(units) is not None and not partners(units, start_layer):
        return [
            "the foreground and background units have no attention layer in common: "
            "nothing is injected"
        ]
    return []


@dataclass(frozen=True)
class Call:
    """What the adapter knows about one call of the UNet.

    Attributes:
        latent_size: (h, w) of the latents, from the tensor itself.
        step: the sampler's step, from 0; several calls may share one.
        pictures: for each row of the ControlNets' batch, which picture it belongs to.
        conditional: the conditional rows of the UNet's batch, one per picture in their order;
            empty where the UNet is asked for the unconditional half alone. With `total`, those of
            the pictures that have one in this call.
        prompts: what these rows were encoded from, where that changes between steps; None keeps
            the session's.
        whole: False where the UNet sees a part of the picture only (a tile). Units are fused
            there, but nothing is injected and no mask is read.
        total: how many pictures the generation has, where a call may hold some of them only and
            the UNet's batch has the rows of the ControlNets'; None: those in this call.
    """

    latent_size: tuple[int, int]
    step: int
    pictures: Sequence[int]
    conditional: Sequence[int]
    prompts: Sequence[TokenizedPrompt] | None = None
    whole: bool = True
    total: int | None = None

    @property
    def picture_count(self) -> int:
        """How many pictures the generation has."""
        return self.total or len(self.conditional) or max(self.pictures) + 1

    @property
    def conditional_pictures(self) -> Sequence[int]:
        """Which picture each of the conditional rows is of."""
        if self.total is None:
            return range(len(self.conditional))
        return [self.pictures[row] for row in self.conditional]


@dataclass
class StepClock:
    """Counts a sampler's own steps where the host counts calls.

    Attributes:
        order: calls that make one step (2 for Heun and DPM2; their last step may have fewer).
        first: calls that make each of the first steps, where these are others.
        calls: completed calls.
    """

    order: int = 1
    first: Sequence[int] = ()
    calls: int = 0

    @property
    def step(self) -> int:
        """The current step, from 0."""
        return self._step_of(self.calls)

    def steps_in(self, calls: int) -> int:
        """How many steps so many calls make, the last one perhaps not whole."""
        return self._step_of(calls - 1) + 1 if calls else 0

    def _step_of(self, calls: int) -> int:
        for step, needed in enumerate(self.first):
            if calls < needed:
                return step
            calls -= needed
        return len(self.first) + calls // max(1, self.order)

    def tick(self) -> None:
        """A call is done."""
        self.calls += 1

"""The units of a generation and their roles, each UNet call, and the sampler's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor, nn

from .attention import AttentionForm, SelfAttention
from .layers import Layer
from .prompt import TokenizedPrompt
from .settings import Settings, SettingsError, fields


class Role(Enum):
    """What a unit is in the method.

    A foreground unit's keys and values go into the background units' self-attention. A unit
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


def assign_roles(
    units: Sequence[Unit], settings: Settings, attention: AttentionForm
) -> list[tuple[Layer, Unit | None]]:
    """Give each unit its role, its number where it has none, and the layers to inject into.

    Returns:
        The units in front, front to back, each with its layer; None where there is nobody.

    Raises:
        SettingsError: a unit is named that is no eligible one.
    """
    eligible = [unit for unit in units if unit.eligible]
    for place, unit in enumerate(units):
        if unit.number is None:
            unit.number = place
    for unit in eligible:
        unit.role = Role.FUSED
        unit.layers = attention.layers(unit.module)
    named = {unit.number or 0: unit for unit in eligible}
    behind = _named(named, "background_unit", settings.background_unit)
    others = [unit for unit in eligible if unit is not behind]
    fronts: list[tuple[Layer, Unit | None]] = []
    for layer in settings.layers_in_front:
        name = "layers" if settings.layers else "foreground_unit"
        chosen = _named(named, name, layer.unit)
        fronts.append((layer, chosen or next(iter(others), None)))
    for unit in eligible if behind is None else [behind]:
        unit.role = Role.BACKGROUND
    for _layer, front in fronts:
        if front is not None:
            front.role = Role.FOREGROUND
    return fronts


def _named(eligible: Mapping[int, Unit], setting: str, chosen: int | str) -> Unit | None:
    """The unit that a setting names by its number; None for "auto"."""
    if isinstance(chosen, str):
        return None
    if chosen not in eligible:
        automatic = "" if setting == "layers" else "'auto' or "
        raise SettingsError(setting, chosen, f"{automatic}one of the units {sorted(eligible)}")
    return eligible[chosen]


def in_front(units: Sequence[Unit]) -> list[Unit]:
    """The units in front, in the host's order."""
    return [unit for unit in units if unit.role is Role.FOREGROUND]


def partners(unit: Unit, units: Sequence[Unit], start_layer: int) -> list[SelfAttention]:
    """The layers of a unit in front that injection asks for.

    A start layer counts the background unit's own: of two ControlNets for one backbone, one may
    have more layers than the other.
    """
    wanted = {
        layer.name
        for behind in units
        for layer in behind.layers
        if behind.role is Role.BACKGROUND and layer.layer >= start_layer
    }
    return [layer for layer in unit.layers if layer.name in wanted]


def why_unreached(units: Sequence[Unit], start_layer: int) -> list[str]:
    """Leave layers alone that hooks cannot reach; say why nothing is injected, whatever the mask.

    Empty where something can be.
    """
    background = [unit for unit in units if unit.role is Role.BACKGROUND]
    reasons = []
    for unit in [*background, *in_front(units)] if background else []:
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
    front = in_front(units)
    if front and not any(partners(unit, units, start_layer) for unit in front):
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
            the pictures that have some in this call.
        prompts: what these rows were encoded from, where that changes between steps; None keeps
            the session's.
        whole: False where the UNet sees a part of the picture only (a tile). Units are fused
            there, but nothing is injected and no mask is read.
        total: how many pictures the generation has, where a call may hold some of them only and
            the UNet's batch has the rows of the ControlNets'; None: those in this call.
        parts: for each of the conditional rows which of its prompt's `parts` it was encoded from;
            empty: the first.
    """

    latent_size: tuple[int, int]
    step: int
    pictures: Sequence[int]
    conditional: Sequence[int]
    prompts: Sequence[TokenizedPrompt] | None = None
    whole: bool = True
    total: int | None = None
    parts: Sequence[int] = ()

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

    @property
    def conditional_parts(self) -> Sequence[tuple[int, int]]:
        """Of each of the conditional rows the picture, and the part of its prompt."""
        parts = self.parts or [0] * len(self.conditional)
        return list(zip(self.conditional_pictures, parts, strict=True))


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

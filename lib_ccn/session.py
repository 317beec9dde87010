"""One generation: units, roles, the step clock, and the calls a host makes. Knows no host.

For every UNet call a host adapter does this::

    session.begin_call(call)
    for unit in session.running_order(units):
        residuals[unit] = session.run(unit, lambda: the host's own ControlNet call)
    fused = session.fuse(residuals)

and `session.close()` when the generation ends, whatever ended it. What goes wrong is raised;
`hosts.guard` decides what it costs.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from . import devices
from .attention import AttentionForm, KeyValueStore
from .fusion import fuse_residuals
from .outcome import Account, Outcome
from .place import Place
from .places import Places
from .prompt import TokenizedPrompt
from .rules import Front
from .settings import Settings, SettingsError
from .unet_attention import UNET
from .units import Call, Role, Unit, assign_roles, partners, why_unreached
from .winners import Winners

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PAPERS_STEPS = 50


class Session:
    """One generation with two or more ControlNets.

    Args:
        settings: validated; `enabled` and `strict` are the host's business.
        unet: the backbone, whose cross-attention is read for the foreground mask.
        units: in the host's order.
        prompts: one per picture, or a single one for all; may be empty when unknown.
        encode: token ids of a text without special tokens, to find the foreground word.
        mask_image: bool [1 or pictures, H, W] for the mask source "image"; or several, by the text
            of the setting that each is from.
        steps: of the sampler, for an automatic start step; None counts as the paper's 50.
        attention: the kind of attention that the ControlNets and the backbone have.

    Attributes:
        notes: what the user is to be told.
        places: of the units in front.
        outcome: what was done so far.
        winners: who won where, with the setting `show_mask`; else None.
        ended_early: to be set where the run is broken off.
        shortfalls: once closed, what was asked for and did not happen, each also a note.

    Raises:
        SettingsError: `layers`, `foreground_unit` or `background_unit` names no eligible unit, or
            a mask image is missing.
    """

    def __init__(
        self,
        settings: Settings,
        unet: nn.Module,
        units: Sequence[Unit],
        prompts: Sequence[TokenizedPrompt] = (),
        encode: Callable[[str], list[int]] | None = None,
        mask_image: Tensor | Mapping[str | None, Tensor] | None = None,
        steps: int | None = None,
        attention: AttentionForm = UNET,
    ) -> None:
        images = mask_image if isinstance(mask_image, Mapping) else {}
        if isinstance(mask_image, Tensor):
            images = {layer.mask_image: mask_image for layer in settings.layers_in_front}
        for layer in settings.layers_in_front if settings.uses_masks else ():
            if layer.mask_source == "image" and layer.mask_image not in images:
                raise SettingsError("mask_image", None, "an image, as mask_source is 'image'")
        settings = settings.at_steps(_PAPERS_STEPS if steps is None else steps)
        self.settings = settings
        self.attention = attention
        self.units = list(units)
        self.notes: list[str] = []
        self.ended_early = False
        self.shortfalls: list[str] = []
        self.outcome = Outcome(settings)
        self.winners = Winners() if settings.show_mask else None
        fronts = assign_roles(self.units, settings, attention)
        if settings.inject:
            for reason in why_unreached(self.units, settings.start_layer):
                self._explain(reason)
        recorder = attention.recorder(unet, settings.mask_reduction)
        self.places = Places(settings, fronts, recorder, prompts, encode, images, self.note)
        self._call: Call | None = None
        self._step: int | None = None
        # Forge runs the ControlNets over the whole picture too before it does so tile by tile.
        self._tiled = False
        self._stores: dict[Place, KeyValueStore] = {}
        self._active: set[Unit] = set()
        self._ever_active: set[Unit] = set()

    @property
    def place(self) -> Place:
        """The place of the unit that is in front of all."""
        return self.places.all[0]

    def running_order(self, units: Sequence[Unit]) -> list[Unit]:
        """The units of one call, those in front first."""
        return sorted(units, key=lambda unit: unit.role is not Role.FOREGROUND)

    def begin_call(self, call: Call, active: Sequence[Unit] | None = None) -> None:
        """A UNet call is about to be made; `active` are the units that take part in it."""
        self._stores.clear()
        self._call = None
        self._active = set(self.units if active is None else active)
        self._ever_active |= self._active
        with self.outcome.timed():
            if not call.whole:
                self._tiled = True
                self.outcome.found_tiles()
                if self.settings.inject:
                    self._explain("the UNet works on tiles: nothing is injected")
            elif call.step != self._step:
                self._step = call.step
                with self.outcome.timed(waits=True):
                    self.places.begin_step(call)
            self.places.begin_call(call)
        self._call = call
        roles = (unit.role for unit in self._active)
        self.outcome.begin(call.step, roles, self.places.is_known)

    def run(self, unit: Unit, forward: Callable[[], Result]) -> Result:
        """Run one unit's ControlNet; its result is returned as it is.

        Keys and values are captured while a unit in front runs, and injected while a background
        unit does. Of units that share a place, those of the first are taken.
        """
        call = self._call
        if call is None or not self._injects(call):
            return forward()
        start = self.settings.start_layer
        if unit.role is Role.FOREGROUND:
            place = self.places.of(unit)
            if place is None or not place.is_known or place in self._stores:
                return forward()
            store = self._stores.setdefault(place, {})
            with self.attention.capture(partners(unit, self.units, start), store):
                return forward()
        places = [place for place in self.places.all if place in self._stores]
        if unit.role is not Role.BACKGROUND or not places:
            return forward()
        stores = [self._stores[place] for place in places]
        regions_for = functools.partial(self.places.regions_for, places, call)
        with self.attention.inject(unit.layers, stores, regions_for, start) as tally:
            result = forward()
        layers = {layer.layer for layer in unit.layers if layer.layer >= start}
        self.outcome.inject(call.step, tally.injected, layers)
        return result

    def _injects(self, call: Call) -> bool:
        return (
            self.settings.inject
            and not self._tiled
            and call.step >= self.settings.injection_start
            and self.places.is_known
            and sum(unit.eligible for unit in self._active) > 1
        )

    def fuse(self, residuals: Mapping[Unit, Sequence[Tensor]]) -> list[Tensor]:
        """One list of residuals for the UNet from those of the units that took part.

        With fewer than two eligible units, or with fusion "sum", this is the host's sum in the
        units' order.
        """
        self._stores.clear()
        everyone = [unit for unit in self.units if unit in residuals]
        fusable = [unit for unit in everyone if unit.eligible]
        with self.outcome.timed():
            self._observe(residuals)
            mode, front = self.settings.fusion, None
            if mode == "layers" and len(fusable) > 1:
                front = self._front(fusable, residuals)
                mode = self.settings.without_places if front is None else mode
            if mode == "sum" or len(fusable) < 2:
                return summed([residuals[unit] for unit in everyone])
            given = [residuals[unit] for unit in fusable]
            decided = None
            if self.winners is not None and self._call is not None:
                decided = self.winners.listener(self._call, fusable)
            outside = self.settings.outside_places
            fused = fuse_residuals(given, mode, self.settings.delta, decided, front, outside)
            total = summed([fused, *(residuals[u] for u in everyone if not u.eligible)])
        if mode == self.settings.fusion:
            self.outcome.fused += 1
        return total

    def _front(
        self, units: Sequence[Unit], residuals: Mapping[Unit, Sequence[Tensor]]
    ) -> Front | None:
        """Who is in front where in this call, for the fusion by layers; None for nobody."""
        call = self._call
        if call is None or self._tiled or len(residuals[units[0]][0]) != len(call.pictures):
            return None
        return self.places.front_for(units, call)

    def _observe(self, residuals: Mapping[Unit, Sequence[Tensor]]) -> None:
        """Keep the deviation of units in front where a word needs it."""
        for unit, tensors in residuals.items():
            self.outcome.queued |= not all(devices.is_cpu(t.device) for t in tensors)
            if unit.role is Role.FOREGROUND and self._call is not None:
                self.places.observe(unit, tensors, self._call)

    def end_call(self) -> None:
        """The UNet has answered: what it is asked before the next `begin_call` is not read."""
        self.places.pause()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Read nothing of what the UNet is asked inside; afterwards the call goes on."""
        self.places.pause()
        try:
            yield
        finally:
            if self._call is not None:
                self.places.begin_call(self._call)

    def close(self) -> None:
        """Remove every hook and let go of every tensor but the last mask; may be repeated.

        What was asked for and did not happen is noted now.
        """
        if not self.ended_early:
            self.shortfalls = self.outcome.shortfalls()
            for text in self.shortfalls:
                self.note(text)
        self.places.close()
        self._stores.clear()
        self._call = None
        for unit in self.units:
            unit.condition = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Tell the user something, once."""
        if text not in self.notes:
            self.notes.append(text)
            log.warning("Cross-ControlNet: %s", text)

    def _explain(self, text: str) -> None:
        """Note why nothing is injected."""
        self.note(text)
        self.outcome.explained = True

    @property
    def injected(self) -> int:
        """Attention layers that keys and values were injected into, over all calls."""
        return self.outcome.injections

    def account(self) -> Account:
        """What was done so far."""
        calls, took_part = self.outcome.calls, self._ever_active
        return Account(
            replace(self.outcome, seconds=self.outcome.seconds + self.places.seconds),
            [
                (
                    unit.name or f"unit {unit.number}",
                    unit.role.value if unit in took_part or not calls else "took no part",
                )
                for unit in self.units
            ],
            self.places.told(),
            list(self.notes),
        )

    def summary(self) -> str:
        """What was done so far, in one line."""
        return self.account().line()


def summed(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Several units' residuals as the hosts make one of them: added up, layer by layer."""
    if len(lists) == 1:
        return list(lists[0])
    return [functools.reduce(operator.add, layer) for layer in zip(*lists, strict=True)]

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

from .attention import UNET, AttentionForm, KeyValueStore
from .foreground_word import ForegroundWord
from .fusion import fuse_residuals
from .masking import WordMask
from .outcome import Account, Outcome
from .places import Place
from .prompt import TokenizedPrompt
from .settings import Settings, SettingsError
from .units import Call, Role, Unit, assign_roles, in_front, partners, why_unreached
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
        mask_image: bool [1 or pictures, H, W] for the mask source "image".
        steps: of the sampler, for an automatic start step; None counts as the paper's 50.
        attention: the kind of attention that the ControlNets and the backbone have.

    Attributes:
        notes: what the user is to be told.
        place: of the foreground unit.
        outcome: what was done so far.
        winners: who won where, with the setting `show_mask`; else None.
        ended_early: to be set where the run is broken off.
        shortfalls: once closed, what was asked for and did not happen, each also a note.

    Raises:
        SettingsError: `foreground_unit` or `background_unit` names no eligible unit, or the mask
            image is missing.
    """

    def __init__(
        self,
        settings: Settings,
        unet: nn.Module,
        units: Sequence[Unit],
        prompts: Sequence[TokenizedPrompt] = (),
        encode: Callable[[str], list[int]] | None = None,
        mask_image: Tensor | None = None,
        steps: int | None = None,
        attention: AttentionForm = UNET,
    ) -> None:
        if settings.mask_source == "image" and settings.inject and mask_image is None:
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
        assign_roles(self.units, settings, attention)
        if settings.inject:
            for reason in why_unreached(self.units, settings.start_layer):
                self._explain(reason)
        recorder = attention.recorder(unet, settings.mask_reduction)
        word = ForegroundWord(settings, encode, self.note)
        maps = WordMask(settings, recorder, prompts, word, self.note)
        self.place = Place(settings, maps, in_front(self.units), mask_image, self.note)
        self._call: Call | None = None
        self._step: int | None = None
        # Forge runs the ControlNets over the whole picture too before it does so tile by tile.
        self._tiled = False
        self._store: KeyValueStore = {}
        self._active: set[Unit] = set()
        self._ever_active: set[Unit] = set()

    def running_order(self, units: Sequence[Unit]) -> list[Unit]:
        """The units of one call, the foreground unit first."""
        return sorted(units, key=lambda unit: unit.role is not Role.FOREGROUND)

    def begin_call(self, call: Call, active: Sequence[Unit] | None = None) -> None:
        """A UNet call is about to be made; `active` are the units that take part in it."""
        self._store.clear()
        self._call = None
        self._active = set(self.units if active is None else active)
        self._ever_active |= self._active
        with self.outcome.timed():
            if not call.whole:
                self._tiled = True
                self.outcome.forget_injections()
                if self.settings.inject:
                    self._explain("the UNet works on tiles: nothing is injected")
            elif call.step != self._step:
                self._step = call.step
                with self.outcome.timed(waits=True):
                    self.place.begin_step(call)
            self.place.begin_call(call)
        self._call = call
        roles = (unit.role for unit in self._active)
        self.outcome.begin(call.step, roles, self.place.is_known)

    def run(self, unit: Unit, forward: Callable[[], Result]) -> Result:
        """Run one unit's ControlNet; its result is returned as it is.

        Keys and values are captured while the foreground unit runs, and injected while a
        background unit does.
        """
        call = self._call
        if call is None or not self._injects(call):
            return forward()
        start = self.settings.start_layer
        if unit.role is Role.FOREGROUND:
            with self.attention.capture(partners(self.units, start), self._store):
                return forward()
        if unit.role is not Role.BACKGROUND or not self._store:
            return forward()
        regions_for = functools.partial(self.place.regions_for, call)
        with self.attention.inject(unit.layers, self._store, regions_for, start) as tally:
            result = forward()
        layers = {layer.layer for layer in unit.layers if layer.layer >= start}
        self.outcome.inject(call.step, tally.injected, layers)
        return result

    def _injects(self, call: Call) -> bool:
        return (
            self.settings.inject
            and not self._tiled
            and call.step >= self.settings.injection_start
            and self.place.is_known
            and sum(unit.eligible for unit in self._active) > 1
        )

    def fuse(self, residuals: Mapping[Unit, Sequence[Tensor]]) -> list[Tensor]:
        """One list of residuals for the UNet from those of the units that took part.

        With fewer than two eligible units, or with fusion "sum", this is the host's sum in the
        units' order.
        """
        self._store.clear()
        everyone = [unit for unit in self.units if unit in residuals]
        fusable = [unit for unit in everyone if unit.eligible]
        with self.outcome.timed():
            self._observe(residuals)
            if self.settings.fusion == "sum" or len(fusable) < 2:
                return summed([residuals[unit] for unit in everyone])
            given = [residuals[unit] for unit in fusable]
            decided = None
            if self.winners is not None and self._call is not None:
                decided = self.winners.listener(self._call, fusable)
            fused = fuse_residuals(given, self.settings.fusion, self.settings.delta, decided)
            total = summed([fused, *(residuals[u] for u in everyone if not u.eligible)])
        self.outcome.fused += 1
        return total

    def _observe(self, residuals: Mapping[Unit, Sequence[Tensor]]) -> None:
        """Keep the foreground unit's deviation where the automatic word needs it."""
        for unit, tensors in residuals.items():
            self.outcome.queued |= any(tensor.device.type != "cpu" for tensor in tensors)
            if unit.role is Role.FOREGROUND and self._call is not None:
                self.place.observe(tensors, self._call)

    def end_call(self) -> None:
        """The UNet has answered: what it is asked before the next `begin_call` is not read."""
        self.place.pause()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Read nothing of what the UNet is asked inside; afterwards the call goes on."""
        self.place.pause()
        try:
            yield
        finally:
            if self._call is not None:
                self.place.begin_call(self._call)

    def close(self) -> None:
        """Remove every hook and let go of every tensor but the last mask; may be repeated.

        What was asked for and did not happen is noted now.
        """
        if not self.ended_early:
            self.shortfalls = self.outcome.shortfalls()
            for text in self.shortfalls:
                self.note(text)
        self.place.close()
        self._store.clear()
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
            replace(self.outcome, seconds=self.outcome.seconds + self.place.seconds),
            [
                (
                    unit.name or f"unit {unit.number}",
                    unit.role.value if unit in took_part or not calls else "took no part",
                )
                for unit in self.units
            ],
            self.settings.mask_source,
            self.place.told_words(),
            self.place.fronts(),
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

"""One generation: units, roles, the step's mask, and the calls a host makes. Knows no host.

For every UNet call a host adapter does this::

    session.begin_call(call)
    for unit in session.running_order(units):
        residuals[unit] = session.run(unit, lambda: the host's own ControlNet call)
    fused = session.fuse(residuals)

and `session.close()` when the generation ends, whatever ended it. An error inside the method
switches it off for the rest of the generation: the host then gets its plain sum, as ever.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from .attention import UNET, AttentionForm, KeyValueStore, Regions, SelfAttention
from .errors import told, without_frames
from .foreground import resize_mask, silhouette, token_grid
from .fusion import fuse_residuals
from .masking import WordMask
from .outcome import Account, Outcome
from .prompt import TokenizedPrompt
from .settings import Settings, SettingsError, fields
from .units import Call, Role, Unit
from .winners import Winners

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PAPERS_STEPS = 50


class Session:
    """One generation with two or more ControlNets.

    Args:
        settings: validated; `enabled` is the host's business.
        unet: the backbone, whose cross-attention is read for the foreground mask.
        units: in the host's order.
        prompts: one per picture, or a single one for all; may be empty when unknown.
        encode: token ids of a text without special tokens, to find the foreground word.
        mask_image: bool [1 or pictures, H, W] for the mask source "image".
        steps: of the sampler, for an automatic start step; None counts as the paper's 50.
        attention: the kind of attention that the ControlNets and the backbone have.

    Attributes:
        notes: what the user is to be told.
        error: what made the method stand aside; without its frames, unless it is raised.
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
        self.error: Exception | None = None
        self.ended_early = False
        self.shortfalls: list[str] = []
        self.outcome = Outcome(settings)
        self.winners = Winners() if settings.show_mask else None
        self._assign_roles()
        self._note_layers()
        self._image = mask_image
        recorder = attention.recorder(unet, settings.mask_reduction)
        self._word = WordMask(settings, recorder, prompts, encode, self.note)
        self._call: Call | None = None
        self._step: int | None = None
        # Forge runs the ControlNets over the whole picture too before it does so tile by tile.
        self._tiled = False
        self._store: KeyValueStore = {}
        self._active: set[Unit] = set()
        self._ever_active: set[Unit] = set()
        self._regions: dict[tuple[object, ...], Regions | None] = {}
        self.mask: Tensor | None = None
        self.usable: Tensor | None = None
        if self.settings.reads_word:
            self._word.attach()

    # What the host adapter calls

    def running_order(self, units: Sequence[Unit]) -> list[Unit]:
        """The units of one call, the foreground unit first."""
        return sorted(units, key=lambda unit: unit.role is not Role.FOREGROUND)

    def begin_call(self, call: Call, active: Sequence[Unit] | None = None) -> None:
        """A UNet call is about to be made; `active` are the units that take part in it."""
        self._store.clear()
        self._call = None
        if self.error is not None:
            return
        self._active = set(self.units if active is None else active)
        self._ever_active |= self._active
        try:
            with self.outcome.timed():
                self._begin(call)
            self._call = call
            self.outcome.begin(call.step, (unit.role for unit in self._active), self._has_mask)
        except Exception as error:
            self._fail(error)

    def run(self, unit: Unit, forward: Callable[[], Result]) -> Result:
        """Run one unit's ControlNet; its result is returned as it is.

        An exception while keys and values are captured or injected switches the method off and
        runs the unit again without it. If that fails too, the exception is the host's own.
        """
        if not self._touches(unit):
            return forward()
        try:
            with self.running(unit):
                return forward()
        except Exception as error:
            self._fail(error)
        # Inside the handler what the failed forward held would still be in memory.
        return forward()

    @contextmanager
    def running(self, unit: Unit) -> Iterator[None]:
        """Capture (foreground) or inject (background) while this unit's ControlNet runs."""
        if not self._touches(unit):
            yield
        elif unit.role is Role.FOREGROUND:
            with self.attention.capture(self.partners(unit), self._store):
                yield
        else:
            start = self.settings.start_layer
            inject = self.attention.inject
            with inject(unit.layers, self._store, self._regions_for, start) as tally:
                yield
            if self._call is not None:
                layers = {layer.layer for layer in unit.layers if layer.layer >= start}
                self.outcome.inject(self._call.step, tally.injected, layers)

    def fuse(self, residuals: Mapping[Unit, Sequence[Tensor]]) -> list[Tensor]:
        """One list of residuals for the UNet from those of the units that took part.

        With fewer than two eligible units, with fusion "sum", or after an error, this is the
        host's sum in the units' order.
        """
        self._store.clear()
        everyone = [unit for unit in self.units if unit in residuals]
        fusable = [unit for unit in everyone if unit.eligible]
        if self.error is None:
            try:
                with self.outcome.timed():
                    self._observe(residuals)
                    if self.settings.fusion != "sum" and len(fusable) > 1:
                        others = [residuals[unit] for unit in everyone if not unit.eligible]
                        total = _sum([self._fused(fusable, residuals), *others])
                        self.outcome.fused += 1
                        return total
            except Exception as error:
                self._fail(error)
        return _sum([residuals[unit] for unit in everyone])

    def _fused(
        self, units: Sequence[Unit], residuals: Mapping[Unit, Sequence[Tensor]]
    ) -> list[Tensor]:
        """The units' residuals as one, by the rule in use."""
        given = [residuals[unit] for unit in units]
        decided = None
        if self.winners is not None and self._call is not None:
            decided = self.winners.listener(self._call, units, len(given[0]))
        return fuse_residuals(given, self.settings.fusion, self.settings.delta, decided)

    def end_call(self) -> None:
        """The UNet has answered: what it is asked before the next `begin_call` is not read."""
        self._word.pause()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Read nothing of what the UNet is asked inside; afterwards the call goes on."""
        self._word.pause()
        try:
            yield
        finally:
            if self._call is not None and self.error is None:
                self._read_word(self._call)

    def close(self) -> None:
        """Remove every hook and let go of every tensor but the last mask; may be repeated.

        What was asked for and did not happen is noted now.
        """
        if self.error is None and not self.ended_early:
            self.shortfalls = self.outcome.shortfalls()
            for text in self.shortfalls:
                self.note(text)
        self._word.detach()
        self._store.clear()
        self._regions.clear()
        self._call = None
        for unit in self.units:
            unit.condition = None

    def note(self, text: str) -> None:
        """Tell the user something, once."""
        if text not in self.notes:
            self.notes.append(text)
            log.warning("Cross-ControlNet: %s", text)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def heat(self) -> Tensor | None:
        """The foreground word's map behind `mask`, float [pictures, H, W] in [0, 1], or None."""
        return self._word.heat

    @property
    def injected(self) -> int:
        """Attention layers that keys and values were injected into, over all calls."""
        return self.outcome.injections

    def words(self, pictures: int) -> list[str]:
        """The word that each picture's mask is from, "star" or "star (automatic)"; "" for none."""
        several = len(self._word.prompts) > 1
        return [self._shown_word(number if several else 0) for number in range(pictures)]

    def _shown_word(self, prompt: int) -> str:
        word = self._word.chosen.get(prompt)
        if not word:
            return ""
        return word if self.settings.foreground_word else f"{word} (automatic)"

    def summary(self) -> str:
        """What was done so far, in one line."""
        return self.account().line()

    def account(self) -> Account:
        """What was done so far."""
        names = [unit.name or f"unit {unit.number}" for unit in self.units]
        parts = [self._part(unit) for unit in self.units]
        source = self.settings.mask_source
        outcome = replace(self.outcome, seconds=self.outcome.seconds + self._word.recorder.seconds)
        return Account(
            outcome,
            list(zip(names, parts, strict=True)),
            source,
            self._told_words() if source == "word" else [],
            self._fronts(),
            list(self.notes),
        )

    def _told_words(self) -> list[str]:
        """Each word that a mask was read from, with how it was chosen."""
        how = "given" if self.settings.foreground_word else "automatic"
        chosen = (self._word.chosen[prompt] for prompt in sorted(self._word.chosen))
        return [f"{word} ({how})" for word in dict.fromkeys(filter(None, chosen))]

    def _fronts(self) -> list[float]:
        """The share of each picture that was in front at last, where that is known."""
        if self.mask is None or self.usable is None:
            return []
        return [float(mask.float().mean()) for mask in self.mask[self.usable]]

    def _part(self, unit: Unit) -> str:
        """A unit's role in what was done."""
        took_part = not self.outcome.calls or unit in self._ever_active
        return unit.role.value if took_part else "took no part"

    # How it is done

    def partners(self, foreground: Unit) -> list[SelfAttention]:
        """The foreground unit's layers that injection asks for.

        A start layer counts the background unit's own: of two ControlNets for one backbone, one
        may have more layers than the other.
        """
        wanted = {
            layer.name
            for unit in self.units
            for layer in unit.layers
            if unit.role is Role.BACKGROUND and layer.layer >= self.settings.start_layer
        }
        return [layer for layer in foreground.layers if layer.name in wanted]

    def _assign_roles(self) -> None:
        eligible = [unit for unit in self.units if unit.eligible]
        for place, unit in enumerate(self.units):
            if unit.number is None:
                unit.number = place
        for unit in eligible:
            unit.role = Role.FUSED
            unit.layers = self.attention.layers(unit.module)
        chosen_background = self._named_unit("background_unit")
        others = [unit for unit in eligible if unit is not chosen_background]
        foreground = self._named_unit("foreground_unit") or (others[0] if others else None)
        for unit in [chosen_background] if chosen_background else eligible:
            unit.role = Role.BACKGROUND
        if foreground is not None:
            foreground.role = Role.FOREGROUND

    def _named_unit(self, setting: str) -> Unit | None:
        """The eligible unit that a setting names by its number; None for "auto"."""
        chosen = getattr(self.settings, setting)
        if chosen == "auto":
            return None
        named = {unit.number or 0: unit for unit in self.units if unit.eligible}
        if chosen not in named:
            raise SettingsError(setting, chosen, f"'auto' or one of {sorted(named)}")
        return named[chosen]

    def _note_layers(self) -> None:
        """Say it if no layer can take keys and values, whatever the mask."""
        background, foreground = (
            [unit for unit in self.units if unit.role is role]
            for role in (Role.BACKGROUND, Role.FOREGROUND)
        )
        if not self.settings.inject or not background:
            return
        if self._leave_unheard([*background, *foreground]):
            return
        start = self.settings.start_layer
        last = max((layer.layer for unit in background for layer in unit.layers), default=-1)
        if 0 <= last < start:
            label = fields()["start_layer"].label.lower()
            self._explain(f"the {label} is {start}, beyond the last ({last}): nothing is injected")
        elif not any(self.partners(unit) for unit in foreground):
            self._explain(
                "the foreground and background units have no attention layer in common: "
                "nothing is injected"
            )

    def _leave_unheard(self, units: Sequence[Unit]) -> bool:
        """Leave layers alone that hooks cannot reach, and say why; whether there are any."""
        found = False
        for unit in units:
            reason = next((layer.unheard for layer in unit.layers if layer.unheard), "")
            if reason:
                found = True
                unit.layers = [layer for layer in unit.layers if not layer.unheard]
                self._explain(f"the attention of {unit.name} {reason}: nothing is injected there")
        return found

    def _explain(self, text: str) -> None:
        """Note why nothing is injected."""
        self.note(text)
        self.outcome.explained = True

    def _begin(self, call: Call) -> None:
        if self._word.error is not None:
            raise self._word.error
        if not call.whole:
            self._word.pause()
            self._tiled = True
            self.outcome.forget_injections()
            if self.settings.inject:
                self._explain("the UNet works on tiles: nothing is injected")
            return
        if self._step is None or call.step != self._step:
            self._step = call.step
            with self.outcome.timed(waits=True):
                self._renew_mask(call)
        self._read_word(call)

    def _read_word(self, call: Call) -> None:
        if not self.settings.reads_word or not call.whole:
            return
        if call.prompts is not None:
            self._word.change_prompts(call.prompts)
        # The mask of step t is read at step t - 1: nothing is read before that is of use.
        due = self.settings.show_mask or call.step + 1 >= self.settings.injection_start
        self._word.begin_call(call, due)

    def _renew_mask(self, call: Call) -> None:
        source = self.settings.mask_source
        if not (self.settings.inject or self.settings.show_mask):
            return
        pictures = call.picture_count
        if source == "word":
            found = self._word.next_mask(call.step)
            if found is None:
                return
            self.mask, self.usable = found
            self._regions.clear()
        elif self.mask is None:
            if source == "all":
                self.mask = torch.ones(pictures, 1, 1, dtype=torch.bool)
            elif source == "image" and self._image is not None:
                self.mask = self._image.cpu().expand(pictures, -1, -1)
            else:
                self.mask = self._silhouette(call, pictures)
            if self.mask is not None:
                self.usable = torch.ones(len(self.mask), dtype=torch.bool)

    def _silhouette(self, call: Call, pictures: int) -> Tensor | None:
        foreground = next((u for u in self.units if u.role is Role.FOREGROUND), None)
        if foreground is None or foreground.condition is None:
            self.note("no silhouette: the foreground unit's condition image is not known")
            return None
        condition, owners = foreground.condition, list(call.pictures)
        if len(condition) == 1:
            rows = [0]
        elif len(condition) == len(owners) != pictures == len(set(owners)):
            rows = [owners.index(picture) for picture in range(pictures)]
        else:
            rows = [picture % len(condition) for picture in range(pictures)]
        return silhouette(condition[rows].detach().cpu().float()).expand(pictures, -1, -1)

    @property
    def _has_mask(self) -> bool:
        return self.mask is not None and self.usable is not None and bool(self.usable.any())

    @property
    def _injects(self) -> bool:
        return (
            self.error is None
            and self._call is not None
            and not self._tiled
            and self.settings.inject
            and self._call.step >= self.settings.injection_start
            and self._has_mask
            and len({unit for unit in self._active if unit.eligible}) > 1
        )

    def _touches(self, unit: Unit) -> bool:
        if not self._injects:
            return False
        if unit.role is Role.BACKGROUND:
            return bool(self._store)
        return unit.role is Role.FOREGROUND

    def _regions_for(self, tokens: int | None, batch: int) -> Regions | None:
        """What a layer with so many image tokens needs of the mask; see `RegionsFor`."""
        call = self._call
        if call is None or self.mask is None or self.usable is None or batch != len(call.pictures):
            return None
        pictures = list(call.pictures)
        key = (call.latent_size, tokens, *pictures)
        if key not in self._regions:
            size = call.latent_size
            grid = size if tokens is None else token_grid(size, tokens)
            self._regions[key] = (
                None
                if grid is None
                else Regions(resize_mask(self.mask, grid)[pictures], self.usable[pictures])
            )
        return self._regions[key]

    def _observe(self, residuals: Mapping[Unit, Sequence[Tensor]]) -> None:
        """Keep the foreground unit's deviation where the automatic word needs it."""
        devices = {tensor.device.type for tensors in residuals.values() for tensor in tensors}
        self.outcome.queued |= bool(devices - {"cpu"})
        if self._call is None or not self.settings.reads_word:
            return
        for unit, tensors in residuals.items():
            if unit.role is Role.FOREGROUND:
                self._word.observe(tensors, self._call.pictures)

    def _fail(self, error: Exception) -> None:
        """Switch the method off for this generation; the host's sum takes over.

        With the setting `strict` the error is raised instead.
        """
        if self.settings.strict:
            self.error = error
            self.close()
            raise error
        if self.error is None:
            text = f"stood aside after an error, the units are summed: {_describe(error)}"
            self.notes.append(text)
            log.warning("Cross-ControlNet %s\n%s", text, told(error))
            self.error = without_frames(error)
        self.close()


def _sum(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    if len(lists) == 1:
        return list(lists[0])
    return [functools.reduce(operator.add, layer) for layer in zip(*lists, strict=True)]


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

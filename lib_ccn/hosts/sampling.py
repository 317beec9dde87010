"""One sampling run of a WebUI, as its adapters see it: a pass over one batch.

A generation has one for every batch, and with the hires fix two. What the adapters of all WebUIs
share is here: when the session begins, which step it is, which rows are whose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..session import Session
from ..settings import Settings, SettingsError, fields
from ..units import Call, Unit
from .prompts import PromptBook, Tokenizer, prompt_book

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Sampling:
    """What is known when a WebUI is about to sample.

    Attributes:
        p: the WebUI's processing object.
        settings: of this generation.
        latent_size: (h, w) of the latents that will be sampled.
        pictures: how many of them.
        cond: the conditioning that the sampler gets.
        hires: whether this is the hires pass.
        mask_image: the painted mask, as `Session` takes it.
        session: once the first UNet call came.
        aside: why the method does not take part in this run, or None.
        idle: whether that is because there is nothing to fuse in this run.
        error: what made it stand aside, if an error did.
        resting: the numbers of units that the hires fix's other pass is for.
        on_close: what undoes the adapter's work, in the order in which it was done.
    """

    p: Any
    settings: Settings
    latent_size: tuple[int, int]
    pictures: int
    cond: Any = None
    hires: bool = False
    mask_image: Tensor | None = None
    session: Session | None = None
    aside: str | None = None
    idle: bool = False
    error: Exception | None = None
    resting: set[int] = field(default_factory=set)
    on_close: list[Callable[[], None]] = field(default_factory=list)
    _book: PromptBook | None = None

    @property
    def step(self) -> int:
        """The sampler's own step, from 0. A second-order sampler's step is two denoiser calls."""
        return self.denoiser_step // self.order

    @property
    def denoiser_step(self) -> int:
        """How often the sampler has asked its denoiser so far."""
        denoiser = getattr(getattr(self.p, "sampler", None), "model_wrap_cfg", None)
        return int(getattr(denoiser, "step", 0))

    @property
    def order(self) -> int:
        """Denoiser calls in one step of this sampler."""
        config = getattr(getattr(self.p, "sampler", None), "config", None)
        options = getattr(config, "options", None) or {}
        return 2 if options.get("second_order", False) else 1

    def begin(self, unet: nn.Module, units: Sequence[Unit]) -> Session | None:
        """The session, made at the first call; None once the method stands aside, or at the end.

        Raises whatever went wrong with the setting `strict`.
        """
        if self.p is None:
            return None
        if self.session is None and self.aside is None:
            try:
                settings, notes = self._settings_for(units)
                tokenizer = Tokenizer.of(self.p.sd_model)
                word = self.settings.foreground_word
                self._book = prompt_book(self.p, self.cond, self.hires, tokenizer, word)
                missing = self._missing_word()
                first = self._book.in_force(self.denoiser_step) if self._book else []
                self.session = Session(
                    settings,
                    unet,
                    units,
                    [prompt for _part, prompt in first],
                    None if tokenizer is None else tokenizer.encode,
                    self.mask_image,
                )
                for text in [*notes, *([missing] if missing is not None else [])]:
                    self.session.note(text)
            except Exception as error:
                self.fail(error)
        return self.session if self.aside is None else None

    def fail(self, error: Exception) -> None:
        """Stand aside because of an error; with the setting `strict`, raise it.

        What an adapter has put in front of the host stays until the run ends: the host may be in
        the middle of a call.
        """
        self._close_session()
        if self.settings.strict:
            self.error = error
            raise error
        if self.aside is None:
            self.error = error
            known = isinstance(error, SettingsError)
            self.aside = str(error) if known else f"{type(error).__name__}: {error}"
            cause = None if known else error
            log.warning("Cross-ControlNet stands aside: %s", self.aside, exc_info=cause)

    def call(
        self,
        latent_size: tuple[int, int],
        pictures: Sequence[int],
        rows: Mapping[tuple[int, int], int],
    ) -> Call:
        """Describe one UNet call.

        Args:
            latent_size: (h, w) of its latents.
            pictures: which picture each of its rows belongs to; empty when that is not known,
                as with tiles.
            rows: its conditional rows: (picture, sub-prompt) -> row.
        """
        whole = latent_size == self.latent_size and bool(pictures)
        whole = whole and max(pictures) < self.pictures
        prompts = None
        parts = [0] * self.pictures
        if whole and self._book is not None:
            chosen = self._book.in_force(self.denoiser_step)
            parts = [part for part, _prompt in chosen]
            prompts = [prompt for _part, prompt in chosen]
        # A batch may come in pieces: the call has the rows of some pictures only.
        wanted = enumerate(parts) if whole else ()
        conditional = [rows[key] for key in wanted if key in rows]
        return Call(latent_size, self.step, pictures, conditional, prompts, whole, self.pictures)

    def parts_of(self, context: Tensor | None, rows: Sequence[int]) -> list[int]:
        """Which sub-prompt each of these rows of the first picture is, by its text context."""
        if self._book is None or context is None:
            return list(range(len(rows)))
        return self._book.parts_of(context, rows, self.denoiser_step)

    def parts_per_picture(self) -> list[int]:
        """How many sub-prompts each picture has."""
        batch = getattr(self.cond, "batch", None)
        return [1] * self.pictures if batch is None else [len(parts) for parts in batch]

    def _settings_for(self, units: Sequence[Unit]) -> tuple[Settings, list[str]]:
        """The settings for these units, and notes; a unit of the other pass cannot be named.

        Raises SettingsError where a unit is named that is not there.
        """
        settings, notes = self.settings, []
        for name in ("foreground_unit", "background_unit"):
            chosen = getattr(settings, name)
            numbers = {unit.number for unit in units if unit.eligible and unit.number is not None}
            known = sorted(number for number in numbers if number >= 0)
            if chosen == "auto" or chosen in known:
                continue
            if chosen not in self.resting:
                others = f" or one of {known}" if known else ": it is not sure which unit is which"
                raise SettingsError(name, chosen, f"'auto'{others}")
            settings = settings.replace(**{name: "auto"})
            label = fields()[name].label.lower()
            notes.append(f"unit {chosen} is not for this pass, so the {label} is automatic in it")
        return settings, notes

    def _missing_word(self) -> str | None:
        """Why the named word is of no use, known before the first step; refused with `strict`."""
        settings = self.settings
        wanted = (settings.inject or settings.show_mask) and settings.mask_source == "word"
        missing = self._book.missing_word() if wanted and self._book is not None else None
        if missing is not None and settings.strict:
            allowed = f"a word or phrase of the prompt ({missing})"
            raise SettingsError("foreground_word", settings.foreground_word, allowed)
        return missing

    def failed_with(self, error: Exception) -> bool:
        """Whether this exception came out of the method, and not out of the host."""
        return error is self.error or (self.session is not None and error is self.session.error)

    def close(self) -> None:
        """Undo everything; may be repeated."""
        self._close_session()
        while self.on_close:
            _quietly(self.on_close.pop())

    def end(self) -> None:
        """Close for good, and let go of what is large: a host may keep what an adapter made."""
        self.close()
        self.p = self.cond = self._book = None

    def _close_session(self) -> None:
        if self.session is not None:
            _quietly(self.session.close)


def _quietly(undo: Callable[[], None]) -> None:
    try:
        undo()
    except Exception as error:  # the next thing must be undone all the same
        log.warning("Cross-ControlNet could not clean up: %s", error, exc_info=error)

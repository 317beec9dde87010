"""One sampling run of a WebUI, as its adapters see it: a pass over one batch.

A generation has one for every batch, and with the hires fix two. What the adapters of all WebUIs
share is here: when the session begins, which step it is, which rows are whose.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from ..outcome import Account
from ..prompt import TokenizedPrompt
from ..session import Session
from ..settings import Settings, SettingsError, fields
from ..units import Call, Unit
from .guard import Guard, quietly, told
from .prompts import PromptBook, Tokenizer, prompt_book

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_UNSURE = "none: it is not sure which unit is which"
_NOT_ASKED = "the WebUI ran no ControlNet unit, so nothing was fused"


@dataclass(eq=False)
class Sampling(Guard):
    """What is known when a WebUI is about to sample.

    Attributes:
        p: the WebUI's processing object.
        settings: of this generation.
        latent_size: (h, w) of the latents that will be sampled.
        pictures: how many of them.
        cond: the conditioning that the sampler gets.
        hires: whether this is the hires pass.
        mask_images: the painted masks, by the text of the setting that each is from.
        session: once the first UNet call came.
        aside: why the method does not take part in this run, or None.
        idle: whether that is because there is nothing to fuse in this run.
        error: what made it stand aside, if an error did.
        interrupted: whether the user stopped it.
        resting: the numbers of units that the hires fix's other pass is for.
        on_close: what undoes the adapter's work, in the order in which it was done.
    """

    p: Any
    settings: Settings
    latent_size: tuple[int, int]
    pictures: int
    cond: Any = None
    hires: bool = False
    mask_images: Mapping[str | None, Tensor] = field(default_factory=dict)
    session: Session | None = None
    aside: str | None = None
    idle: bool = False
    error: Exception | None = None
    interrupted: bool = False
    resting: set[int] = field(default_factory=set)
    on_close: list[Callable[[], None]] = field(default_factory=list)
    _book: PromptBook | None = None
    _unread: str | None = None

    @property
    def step(self) -> int:
        """The sampler's own step, from 0. A second-order sampler's step is two denoiser calls."""
        return self.denoiser_step // self.order

    @property
    def denoiser_step(self) -> int:
        """How often the sampler has asked its denoiser so far."""
        return int(getattr(self._denoiser, "step", 0))

    @property
    def _denoiser(self) -> Any:
        return getattr(getattr(self.p, "sampler", None), "model_wrap_cfg", None)

    @property
    def steps(self) -> int | None:
        """How many steps the sampler makes; None where the host does not say."""
        calls = getattr(self._denoiser, "total_steps", None)
        return None if calls is None else int(calls) // self.order

    @property
    def order(self) -> int:
        """Denoiser calls in one step of this sampler."""
        config = getattr(getattr(self.p, "sampler", None), "config", None)
        options = getattr(config, "options", None) or {}
        return 2 if options.get("second_order", False) else 1

    def begin(self, unet: nn.Module, units: Sequence[Unit]) -> Session | None:
        """The session, made at the first call; None at the end."""
        if self.p is not None and self.session is None:
            self.session = self._make_session(unet, units)
        return None if self.p is None else self.session

    def _make_session(self, unet: nn.Module, units: Sequence[Unit]) -> Session:
        settings, notes = self._settings_for(units)
        tokenizer = self._of_prompts(lambda: Tokenizer.of(self.p.sd_model), None)
        words = settings.given_words
        self._book = self._of_prompts(
            lambda: prompt_book(self.p, self.cond, self.hires, tokenizer, words), None
        )
        missing, partly = self._missing_word(), self._partly_missing_word()
        prompts = [prompt for _read, prompt in self._prompts_now()]
        encode = None if tokenizer is None else tokenizer.encode
        session = Session(settings, unet, units, prompts, encode, self.mask_images, self.steps)
        for text in [*notes, missing, partly, self._unread]:
            if text is not None:
                session.note(text)
        return session

    def account(self) -> Account:
        """What was done in this run."""
        return super().account() or Account(notes=[_NOT_ASKED])

    def notes(self) -> list[str]:
        """What the user is to be told of this run."""
        if self.session is None and self.aside is None:
            return [_NOT_ASKED]
        aside = [] if self.aside is None else [self.aside]
        return [*aside, *(self.session.notes if self.session is not None else ())]

    def refusal(self, sufficed: bool) -> str | None:
        """Why the setting `strict` refuses this run, once it is over.

        Args:
            sufficed: another pass of the generation did all that was asked, so that it is no
                matter where there was nothing to do in this one.
        """
        if self.aside is not None:
            return None if self.idle and sufficed else self.aside
        shortfalls = [_NOT_ASKED] if self.session is None else self.session.shortfalls
        return None if sufficed or not shortfalls else shortfalls[0]

    @property
    def did_all(self) -> bool:
        """Whether everything was done that was asked for."""
        return self.refusal(sufficed=False) is None

    @property
    def needless(self) -> bool:
        """Whether there is nothing to tell: the host's sum was wanted, or nothing was begun."""
        if self.session is not None or self.aside is not None:
            return False
        settings = self.settings
        asked = settings.fusion != "sum" or settings.inject or settings.show_mask
        return self.interrupted or not asked

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
        parts: list[tuple[int, ...]] = [(0,)] * self.pictures
        chosen = self._prompts_now() if whole else []
        if chosen:
            parts = [read for read, _prompt in chosen]
            prompts = [prompt for _read, prompt in chosen]
        # A batch may come in pieces: the call has the rows of some pictures only.
        found = [
            (rows[picture, part], number)
            for picture, read in enumerate(parts if whole else ())
            for number, part in enumerate(read)
            if (picture, part) in rows
        ]
        return Call(
            latent_size,
            self.step,
            pictures,
            [row for row, _number in found],
            prompts,
            whole,
            self.pictures,
            [number for _row, number in found],
        )

    def parts_of(self, context: Tensor | None, rows: Sequence[int]) -> list[int]:
        """Which sub-prompt each of these rows of the first picture is, by its text context."""
        unknown = list(range(len(rows)))
        if self._book is None or context is None:
            return unknown
        book, step = self._book, self.denoiser_step
        return self._of_prompts(lambda: book.parts_of(context, rows, step), unknown)

    def parts_per_picture(self) -> list[int]:
        """How many sub-prompts each picture has."""
        batch = getattr(self.cond, "batch", None)
        return [1] * self.pictures if batch is None else [len(parts) for parts in batch]

    def _settings_for(self, units: Sequence[Unit]) -> tuple[Settings, list[str]]:
        """The settings for these units, and notes; a unit of the other pass cannot be named.

        Raises SettingsError where a unit is named that is not there.
        """
        settings, notes = self.settings, []
        numbers = {unit.number for unit in units if unit.eligible and unit.number is not None}
        known = sorted(number for number in numbers if number >= 0)
        for layer in settings.layers:
            if layer.unit in known:
                continue
            if layer.unit not in self.resting:
                allowed = f"one of the units {known}" if known else _UNSURE
                raise SettingsError("layers", layer.text(), allowed)
            left = [other for other in settings.layers if other.unit != layer.unit]
            # The foreground unit and word may say again who was the first of them.
            settings = settings.replace(layers=left, foreground_unit="auto", foreground_word="")
            notes.append(f"unit {layer.unit} is not for this pass, so it is not in front in it")
        if self.settings.layers and not settings.layers:
            # Not an automatic foreground in place of those who were named.
            settings = settings.replace(fusion=settings.without_places, inject=False)
        for name in ("foreground_unit", "background_unit"):
            chosen = getattr(settings, name)
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
        if not settings.reads_word or self._book is None:
            return None
        missing = self._of_prompts(self._book.missing_words, None)
        if missing is not None and settings.strict:
            allowed = f"words or phrases of the prompt ({missing})"
            name = "layers" if settings.layers else "foreground_word"
            raise SettingsError(name, ", ".join(settings.given_words), allowed)
        return missing

    def _partly_missing_word(self) -> str | None:
        """In which steps only the prompt has the named word, because of its editing."""
        if not self.settings.reads_word or self._book is None:
            return None
        book, order = self._book, self.order
        return self._of_prompts(lambda: book.partly_missing_words(order), None)

    def _prompts_now(self) -> list[tuple[tuple[int, ...], TokenizedPrompt]]:
        """For each picture the sub-prompts to read now, and their tokens; empty where not known."""
        if self._book is None:
            return []
        book, step = self._book, self.denoiser_step
        return self._of_prompts(lambda: book.in_force(step), [])

    def _of_prompts(self, ask: Callable[[], Result], otherwise: Result) -> Result:
        """What is known of the prompts. What goes wrong there costs the word, not the fusion.

        With the setting `strict` it is raised, where a word is wanted.
        """
        try:
            return ask()
        except Exception as error:
            if self.settings.strict and self.settings.reads_word:
                raise
            self._book = None
            log.debug("Cross-ControlNet cannot read the prompt\n%s", told(error))
            if self.settings.reads_word:
                self._unread = f"the prompt could not be read ({type(error).__name__}: {error})"
                if self.session is not None:
                    self.session.note(self._unread)
        return otherwise

    def failed_with(self, error: Exception) -> bool:
        """Whether this exception came out of the method, and not out of the host."""
        return error is self.error

    def close(self) -> None:
        """Undo everything; may be repeated."""
        self.close_session()
        while self.on_close:
            quietly(self.on_close.pop())

    def end(self) -> None:
        """Close for good, and let go of what is large: a host may keep what an adapter made."""
        self.close()
        self.p = self.cond = self._book = None

    def close_session(self) -> None:
        """Take away what the session has put into the host's networks; may be repeated."""
        self.interrupted |= _is_interrupted()
        if self.session is not None:
            self.session.ended_early |= self.interrupted
            quietly(super().close_session)


def _is_interrupted() -> bool:
    """Whether the user has asked the WebUI to stop."""
    state = getattr(sys.modules.get("modules.shared"), "state", None)
    return bool(getattr(state, "interrupted", False) or getattr(state, "skipped", False))

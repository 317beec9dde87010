"""One generation of a WebUI, from its script's callbacks to the picture's text.

The script is called back many times: before and while a generation is prepared, before every
sampling run (each batch, and the hires pass), for every picture, and at the end unless something
broke. Between them stands `p.sample`, the one call that contains all sampling of a batch and in
which an exception is not swallowed by the WebUI: it is wrapped, so that all of ours is gone when
it returns or raises, and so that the setting `strict` can refuse. A script may have one processing
object processed several times, and somebody may keep the wrapper of the first time behind theirs:
it asks each time which generation is running.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ..hooks import free_copy, put_in_front
from ..hosts import a1111, forge
from ..hosts.sampling import Sampling
from ..images import decode_masks
from ..outcome import Account
from ..settings import Settings, SettingsError, fields, page_message
from ..showable import showable
from . import options
from .arguments import RefusedError, Request
from .pictures import Result, in_one_column
from .xyz import in_grid

log = logging.getLogger(__name__)

HOSTS = (forge, a1111)
NOTE = "CCN note"
WORD = "CCN word"
DONE = "CCN done"
_COMMENT = "Cross-ControlNet: "
_OUTER = 1  # how many generations may be going on around a new one


class Generations:
    """What the script holds: the generations that are running, if they are ours.

    A WebUI has one request at a time in its pipeline, but an extension may generate inside a
    generation: what it begins is another one, and the outer goes on afterwards. None of the
    methods raises.
    """

    def __init__(self) -> None:
        self._running: list[Generation] = []  # the outermost first

    def before_process(self, p: Any) -> None:
        """A generation is about to be prepared. One that broke without a word is ended here."""
        free_copy(p, "sample")
        if not _is_inner(p):
            self._end_of(p)
            broken = [running for running in self._running if running.broken]
            # Not every one that broke says so: of what may be outer ones, only the last is kept.
            for generation in [*broken, *self._running[:-_OUTER]]:
                self._end(generation)

    def process(self, p: Any, request: Request) -> None:
        """A generation is being prepared with these settings."""
        if _is_inner(p):
            return
        self._end_of(p)
        generation = Generation(p, request)
        if generation.wanted:
            self._running.append(generation)
            generation.begin()
            ours = functools.partial(self._sample, p)
            generation.on_end.append(put_in_front(p, "sample", ours, stays=True))

    def before_sampling(self, p: Any, **kwargs: Any) -> None:
        """A sampling run is about to begin; `x` are its latents, `c` its conditioning."""
        generation = self._of(p)
        if generation is not None:
            generation.before_sampling(kwargs.get("x"), kwargs.get("c"))

    def postprocess_image(self, p: Any, picture: Image.Image) -> None:
        """A picture of the batch is done."""
        generation = self._of(p)
        if generation is not None:
            generation.show_result(picture)

    def postprocess(self, p: Any, processed: Any) -> None:
        """The generation is done."""
        generation = self._of(p)
        if generation is not None:
            generation.deliver(processed)
            self._end(generation)

    def _of(self, p: Any) -> Generation | None:
        return next((running for running in self._running if running.p is p), None)

    def _sample(self, p: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        generation = self._of(p)
        if generation is None:  # somebody has put theirs in front of ours and kept it
            return own(*args, **kwargs)
        return generation.sample(functools.partial(own, *args, **kwargs))

    def _end_of(self, p: Any) -> None:
        generation = self._of(p)
        if generation is not None:
            self._end(generation)

    def _end(self, generation: Generation) -> None:
        if generation in self._running:
            self._running.remove(generation)
        generation.end()


class Generation:
    """One generation with Cross-ControlNet asked for, or refused.

    Attributes:
        p: the WebUI's processing object.
        settings: in use.
        notes: what the user is told, in the picture's text and under it.
        result: what there is to show of each picture of the latest batch.
        broken: whether its sampling raised something.
        on_end: what undoes that it was begun.
    """

    def __init__(self, p: Any, request: Request) -> None:
        self.p = p
        self.settings: Settings = request.settings
        self.strict = request.strict
        self.notes: list[str] = []
        self.result = Result()
        self.broken = False
        self.on_end: list[Callable[[], None]] = []
        self._problem = request.problem
        self._inside = False
        self._mask_images: dict[str | None, Tensor] = {}
        self._samplings: list[Sampling] = []
        self._strips: list[tuple[int, Image.Image]] = []
        self._words: list[str] = []
        # Of the first pass and of the hires pass, over all batches.
        self._accounts: dict[bool, Account] = {}
        self._host: Any = next((host for host in HOSTS if host.is_here(p)), None)
        self._write_settings(request.to_infotext())

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do or to say."""
        return self.settings.enabled or self._problem is not None

    def begin(self) -> None:
        """Check what can be checked now."""
        if self._problem is None:
            try:
                self.settings.check_usable()
                self._mask_images = decode_masks(self.settings)
            except SettingsError as error:
                self._problem = page_message(error)
        if self._problem is None and self._host is None:
            self._problem = "no ControlNet that it can work with is installed"
        if self._problem is not None:
            self.note(self._problem)
            self.p.comment(_COMMENT + self.notes[-1])

    def before_sampling(self, x: Any, cond: Any) -> None:
        """Step in between the units and the UNet for the run that is about to begin."""
        if self._problem is not None or not isinstance(x, Tensor):
            return
        self._close_samplings()  # the pass before this one, if any, is over
        hires = bool(getattr(self.p, "is_hr_pass", False))
        # The WebUI may prepare a run and then begin another in its place.
        self._samplings = [s for s in self._samplings if _was_run(s) or s.hires != hires]
        sampling = Sampling(
            self.p,
            self.settings,
            (x.shape[-2], x.shape[-1]),
            len(x),
            cond,
            hires,
            self._mask_images,
        )
        try:
            sampling.aside = self._host.attach(sampling)
            sampling.idle = sampling.aside is not None
        except Exception as error:
            sampling.aside = f"could not step in: {type(error).__name__}: {error}"
            log.warning("Cross-ControlNet %s", sampling.aside, exc_info=error)
        self._samplings.append(sampling)

    def show_result(self, picture: Image.Image) -> None:
        """Put what was done beside a picture of the batch, where the settings ask for it."""
        number = int(getattr(self.p, "batch_index", 0))
        if not self.settings.show_mask or not number < self.result.pictures:
            return
        try:
            strip = self.result.strip(picture, number)
            place = int(getattr(self.p, "iteration", 0)) * int(self.p.batch_size) + number
            self._strips.append((place, strip))
            if options.saves_masks() and self.p.save_samples():
                _save(self.p, strip, number)
        except Exception as error:
            log.warning("Cross-ControlNet cannot show what was done: %s", error, exc_info=error)

    def deliver(self, processed: Any) -> None:
        """Add the strips to the results, each with the text of its picture; say what was done.

        Forge and its kin have `extra_result_images` for such pictures, but reForge's API leaves
        them out. The page looks for a text for every picture that it saves. Of a cell, X/Y/Z takes
        the first picture only: there the strips, which begin with the picture, take its place.
        """
        given = getattr(processed, "extra_generation_params", None)
        if self.lines and isinstance(given, dict):  # the grid's cells share the mapping
            processed.extra_generation_params = {**given, DONE: self.lines}
        images = getattr(processed, "images", None)
        if not self._strips or not isinstance(images, list):
            return
        if images and in_grid(self.p):
            images[0] = in_one_column([strip for _place, strip in self._strips])
            return
        texts = list(getattr(processed, "infotexts", None) or [getattr(processed, "info", "")])
        own = texts[int(getattr(processed, "index_of_first_image", 0)) :]
        filling = [texts[0]] * len(images)
        more = [own[place] if place < len(own) else texts[0] for place, _strip in self._strips]
        processed.infotexts = [*(texts + filling)[: len(images)], *more]
        images.extend(strip for _place, strip in self._strips)

    @property
    def lines(self) -> list[str]:
        """What was done, a line for each pass."""
        found = ((_pass(hires), account.line()) for hires, account in self._accounts.items())
        return [showable(which + line) for which, line in found]

    def note(self, text: str) -> None:
        """Tell the user something in the picture's text."""
        text = showable(text)
        if text not in self.notes:
            self.notes.append(text)
            self.p.extra_generation_params[NOTE] = "; ".join(self.notes)

    def end(self) -> None:
        """Leave nothing of ours behind; may be repeated."""
        self._close_samplings()
        for line in self.lines:
            log.info("%s", line)
        self._accounts.clear()
        while self.on_end:
            self.on_end.pop()()

    def sample(self, own: Callable[[], Any]) -> Any:
        """Sample a batch: what `own` does, with the method around it."""
        if self._inside:  # wrapped twice: somebody has kept the wrapper of an earlier time
            return own()
        self._inside = True
        try:
            return self._sample(own)
        except BaseException:
            self.broken = True
            raise
        finally:
            self._inside = False

    # How it is done

    def _write_settings(self, texts: Mapping[str, str]) -> None:
        """Into the picture's text; None where there is nothing, as grids share the mapping."""
        names = {setting.infotext: None for setting in fields().values() if setting.infotext}
        self.p.extra_generation_params.update({**names, NOTE: None, WORD: None, **texts})

    def _sample(self, own: Callable[[], Any]) -> Any:
        self._samplings, self.result = [], Result()
        self._refuse(self._problem)
        try:
            result = own()
        except Exception as error:
            if self.strict and any(s.failed_with(error) for s in self._samplings):
                raise RefusedError(page_message(error)) from error
            raise
        finally:
            self._close_samplings()
        try:
            self._report()
        except RefusedError:
            raise
        except Exception as error:
            log.warning("Cross-ControlNet cannot report: %s", error, exc_info=error)
        return result

    def _refuse(self, reason: str | None) -> None:
        if reason is not None and self.strict:
            raise RefusedError(reason)

    def _report(self) -> None:
        """Say what became of the batch's sampling runs; what the latest shows is the pictures'.

        With the hires fix a unit may be for one pass only: where there is nothing to fuse in one
        of them, it is enough that the other has it.
        """
        sufficed = any(sampling.did_all for sampling in self._samplings)
        before = self.lines
        for sampling in self._samplings:
            if sampling.needless:
                continue
            for text in sampling.notes():
                self.note(_pass(sampling.hires) + text)
            account, earlier = sampling.account(), self._accounts.get(sampling.hires)
            joined = account if earlier is None else earlier.joined(account)
            self._accounts[sampling.hires] = joined
            session = sampling.session
            if session is not None:
                self.result.take(session, sampling.pictures)
                self._write_words(session.places.words(sampling.pictures))
        self._comment(before)
        for sampling in self._samplings:
            refusal = None if sampling.needless else sampling.refusal(sufficed)
            self._refuse(None if refusal is None else _pass(sampling.hires) + refusal)

    def _comment(self, before: Sequence[str]) -> None:
        """Say what was done under the picture, in place of what was said there `before`."""
        comments = getattr(self.p, "comments", None)
        if isinstance(comments, dict):
            for line in before:
                comments.pop(_COMMENT + line, None)
        for line in self.lines:
            self.p.comment(_COMMENT + line)

    def _write_words(self, words: Sequence[str]) -> None:
        """Which word each picture's mask is from, where the method chose it."""
        if all(layer.word for layer in self.settings.layers_in_front) or not any(words):
            return
        first = int(getattr(self.p, "iteration", 0)) * int(self.p.batch_size)
        self._words += [""] * (first + len(words) - len(self._words))
        self._words[first : first + len(words)] = map(showable, words)
        several = len(set(self._words)) > 1
        self.p.extra_generation_params[WORD] = list(self._words) if several else self._words[0]

    def _close_samplings(self) -> None:
        for sampling in self._samplings:
            sampling.end()


def _pass(hires: bool) -> str:
    return "hires pass: " if hires else ""


def _was_run(sampling: Sampling) -> bool:
    return sampling.session is not None or sampling.error is not None


def _is_inner(p: Any) -> bool:
    """Whether another extension generates inside a generation: ADetailer's repairs of faces."""
    return bool(getattr(p, "_ad_inner", False))


def _save(p: Any, strip: Image.Image, number: int) -> None:
    from modules import images
    from modules.shared import opts

    images.save_image(
        strip,
        p.outpath_samples,
        "",
        p.seeds[number],
        p.prompts[number],
        opts.samples_format,
        p=p,
        suffix="-cross-controlnet-result",
    )

"""One generation of a WebUI, from its script's callbacks to the picture's text.

The script is called back many times: before and while a generation is prepared, before every
sampling run (each batch, and the hires pass), for every picture, and at the end unless something
broke. Between them stands `p.sample`, the one call that contains all sampling of a batch and in
which an exception is not swallowed by the WebUI: it is wrapped, so that all of ours is gone when
it returns or raises, and so that the setting `strict` can refuse.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from PIL import Image
from torch import Tensor

from ..hosts import a1111, forge
from ..hosts.sampling import Sampling
from ..images import decode_mask
from ..settings import Settings, SettingsError, fields
from . import options
from .arguments import Request
from .pictures import mask_strip
from .refusal import RefusedError

log = logging.getLogger(__name__)

HOSTS = (forge, a1111)
NOTE = "CCN note"


class Generations:
    """What the script holds: the generation that is running, if it is one of ours.

    None of its methods raises.
    """

    def __init__(self) -> None:
        self._running: Generation | None = None

    def before_process(self, p: Any) -> None:
        """A generation is about to be prepared. One that broke without a word is ended here."""
        if not _is_inner(p):
            self._end()

    def process(self, p: Any, request: Request) -> None:
        """A generation is being prepared with these settings."""
        if _is_inner(p):
            return
        self._end()
        generation = Generation(p, request)
        if generation.wanted:
            self._running = generation
            generation.begin()

    def before_sampling(self, p: Any, **kwargs: Any) -> None:
        """A sampling run is about to begin; `x` are its latents, `c` its conditioning."""
        generation = self._of(p)
        if generation is not None:
            generation.before_sampling(kwargs.get("x"), kwargs.get("c"))

    def postprocess_image(self, p: Any, picture: Image.Image) -> None:
        """A picture of the batch is done."""
        generation = self._of(p)
        if generation is not None:
            generation.show_mask(picture)

    def postprocess(self, p: Any, processed: Any) -> None:
        """The generation is done."""
        generation = self._of(p)
        if generation is not None:
            generation.deliver(processed)
            self._end()

    def _of(self, p: Any) -> Generation | None:
        running = self._running
        return running if running is not None and running.p is p else None

    def _end(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None


class Generation:
    """One generation with Cross-ControlNet asked for, or refused.

    Attributes:
        p: the WebUI's processing object.
        settings: in use.
        notes: what the user is told, in the picture's text and under it.
        masks: the foreground mask of each picture of the latest batch.
    """

    def __init__(self, p: Any, request: Request) -> None:
        self.p = p
        self.settings: Settings = request.settings
        self.strict = request.strict
        self.notes: list[str] = []
        self.masks: Tensor | None = None
        self._problem = request.problem
        self._over = False
        self._mask_image: Tensor | None = None
        self._samplings: list[Sampling] = []
        self._strips: list[Image.Image] = []
        self._host: Any = next((host for host in HOSTS if host.is_here(p)), None)
        self._write_settings()

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do or to say."""
        return self.settings.enabled or self._problem is not None

    def begin(self) -> None:
        """Check what can be checked now, and stand in front of the sampling."""
        if self._problem is None:
            try:
                self.settings.check_usable()
                self._mask_image = decode_mask(self.settings)
            except SettingsError as error:
                self._problem = str(error)
        if self._problem is None and self._host is None:
            self._problem = "no ControlNet that it can work with is installed"
        if self._problem is not None:
            self.note(self._problem)
        self._wrap_sample()

    def before_sampling(self, x: Any, cond: Any) -> None:
        """Step in between the units and the UNet for the run that is about to begin."""
        if self._problem is not None or not isinstance(x, Tensor):
            return
        self._close_samplings()  # the pass before this one, if any, is over
        hires = bool(getattr(self.p, "is_hr_pass", False))
        sampling = Sampling(
            self.p,
            self.settings,
            (x.shape[-2], x.shape[-1]),
            len(x),
            cond,
            hires,
            self._mask_image,
        )
        try:
            sampling.aside = self._host.attach(sampling)
        except Exception as error:
            sampling.aside = f"could not step in: {type(error).__name__}: {error}"
            log.warning("Cross-ControlNet %s", sampling.aside, exc_info=error)
        self._samplings.append(sampling)

    def show_mask(self, picture: Image.Image) -> None:
        """Put the mask beside a picture of the batch, where the settings ask for it."""
        number = int(getattr(self.p, "batch_index", 0))
        if not self.settings.show_mask or self.masks is None or not number < len(self.masks):
            return
        try:
            strip = mask_strip(picture, self.masks[number])
            self._strips.append(strip)
            if options.saves_masks():
                _save(self.p, strip, number)
        except Exception as error:
            log.warning("Cross-ControlNet cannot show the mask: %s", error, exc_info=error)

    def deliver(self, processed: Any) -> None:
        """Add the masks to the results.

        Forge and its kin have `extra_result_images` for such pictures, but reForge's API leaves
        them out.
        """
        images = getattr(processed, "images", None)
        if self._strips and isinstance(images, list):
            images.extend(self._strips)

    def note(self, text: str) -> None:
        """Tell the user something: in the picture's text, and under the picture."""
        if text not in self.notes:
            self.notes.append(text)
            self.p.extra_generation_params[NOTE] = "; ".join(self.notes)
            self.p.comment(f"Cross-ControlNet: {text}")

    def end(self) -> None:
        """Leave nothing of ours behind; may be repeated."""
        self._over = True
        self._close_samplings()
        if getattr(self.p.__dict__.get("sample"), "is_cross_controlnet", False):
            del self.p.__dict__["sample"]

    # How it is done

    def _write_settings(self) -> None:
        """Into the picture's text; None where there is nothing, as grids share the mapping."""
        names = {setting.infotext: None for setting in fields().values() if setting.infotext}
        self.p.extra_generation_params.update({**names, NOTE: None, **self.settings.to_infotext()})

    def _wrap_sample(self) -> None:
        own = self.p.sample

        @functools.wraps(own)
        def sample(*args: Any, **kwargs: Any) -> Any:
            if self._over:  # somebody has put theirs in front of ours and kept it
                return own(*args, **kwargs)
            self._samplings, self.masks = [], None
            self._refuse(self._problem)
            try:
                result = own(*args, **kwargs)
            except Exception as error:
                if self.strict and any(s.failed_with(error) for s in self._samplings):
                    raise RefusedError(str(error)) from error
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

        sample.is_cross_controlnet = True  # type: ignore[attr-defined]
        self.p.sample = sample

    def _refuse(self, reason: str | None) -> None:
        if reason is not None and self.strict:
            raise RefusedError(reason)

    def _report(self) -> None:
        """Say what became of the batch's sampling runs; the latest mask is the pictures'."""
        for sampling in self._samplings:
            session = sampling.session
            if session is None and sampling.aside is None:
                continue  # the WebUI prepared this run and then began another
            which = "hires pass: " if sampling.hires else ""
            if sampling.aside is not None:
                self.note(which + sampling.aside)
                self._refuse(which + sampling.aside)
            if session is None:
                continue
            for text in session.notes:
                self.note(which + text)
            if session.mask is not None:
                self.masks = session.mask.expand(sampling.pictures, -1, -1)
            log.info("%s%s", which, session.summary())
        if self.settings.show_mask and self.masks is None and not self.notes:
            self.note("there is no mask to show: too few steps")

    def _close_samplings(self) -> None:
        for sampling in self._samplings:
            sampling.close()


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
        suffix="-cross-controlnet-mask",
    )

"""One sampling with a conditioning's ControlNets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..attention import AttentionForm
from ..hosts.guard import Guard, quietly, told
from ..hosts.linked_list import fused, in_order, unit_of, without_predecessors
from ..outcome import Account
from ..session import Session
from ..settings import Settings
from ..unet_attention import UNET
from ..units import Call, Unit
from .flux import FLUX, is_flux
from .plan import Plan, Record
from .words import begins_alike

log = logging.getLogger(__name__)

_NOT_ASKED = "nothing was fused: the ControlNets were not asked in the span of the node"
_PATCH = 2  # latents that a transformer's token has in each direction


class Entry(NamedTuple):
    """A positive conditioning, and whether its prompt is the foreground word's."""

    embedding: Tensor
    has_word: bool


class Run(Guard):
    """What is known of one sampling.

    Args:
        plan: of the node.
        entries: the positive conditionings that have these ControlNets.
        model: the host's, which has the network.
    """

    def __init__(self, plan: Plan, entries: Sequence[Entry], model: Any) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.entries = list(entries)
        self.unet: nn.Module = model.diffusion_model
        shapes = getattr(model, "latent_shapes", None)
        self._shape = tuple(shapes[0]) if shapes else None
        self._fused: dict[Session, dict[Unit, Any]] = {}  # the host's ControlNets of each
        self._part: Session | None = None
        self._known: dict[Any, Entry | None] = {}  # by the host's name of a conditioning
        self._undo: Callable[[], None] = _nothing
        self._sigmas: tuple[Any, int] = (None, 0)

    def answer(self, newest: Any, arguments: tuple[Any, ...]) -> Any:
        """What the units of a list say to a call, as one.

        Args:
            newest: the last that was added.
            arguments: of `get_control`: latents [rows, C, h, w], noise level [rows], conditioning,
                how many conditionings are in the batch, the transformer's options.
        """
        x, t, cond, chunks, options = arguments
        call = self._describe(x, cond, chunks, options)
        session = self._session_for(call, newest, options)
        grid = None if self._is_unet else call.latent_size

        def ask(control: Any) -> Any:
            with without_predecessors(control):
                return control.get_control(*arguments)

        return fused(session, call, self._fused[session], t, ask, grid)

    def _session_for(self, call: Call, newest: Any, options: Mapping[str, Any]) -> Session:
        """The session of a call: a part of the picture (an area) has one of its own.

        Nothing is injected there, and where a word is cannot be read from it.
        """
        session = self.session if call.whole else self._part
        if session is not None:
            return session
        sigmas = options.get("sample_sigmas")
        steps = 1 if sigmas is None else max(1, len(sigmas) - 1)
        settings = self.plan.settings_for(steps)
        form, problem = self._attention()
        if form is None or not call.whole:
            settings = settings.replace(inject=False, show_mask=settings.show_mask and call.whole)
        controls = {
            unit_of(control, f"{number}: {type(control).__name__}", number): control
            for number, control in enumerate(in_order(newest))
        }
        session = self._made_session(settings, list(controls), steps, form or UNET)
        self._fused[session] = controls
        if call.whole:
            self.session = session
            # What the network is asked for other conditionings is not read.
            hook = self.unet.register_forward_hook(lambda *_: session.end_call())
            self._undo = hook.remove
        else:
            self._part = session
            if self.settings.fusion == "layers":
                rule = self.settings.outside_places
                what = "they are summed" if rule == "sum" else f"it is {rule}"
                problem = f"in parts of the picture the units have no places: {what} there"
            elif self.settings.inject and problem is None:
                problem = "of parts of the picture the units are fused only: nothing is injected"
        for text in filter(None, [problem, *self._missing_words(settings)]):
            session.note(text)
        return session

    def _made_session(
        self, settings: Settings, units: Sequence[Unit], steps: int, form: AttentionForm
    ) -> Session:
        word, masks = self.plan.word, self.plan.masks_for(self._pictures or 1)
        if word is None:
            return Session(settings, self.unet, units, (), None, masks, steps, form)
        return Session(settings, self.unet, units, [word.prompt], word.encode, masks, steps, form)

    def _missing_words(self, settings: Settings) -> list[str]:
        word = self.plan.word
        if word is None or not settings.reads_word:
            return []
        return list(filter(None, map(word.missing, settings.given_words or ("",))))

    @property
    def _is_unet(self) -> bool:
        return hasattr(self.unet, "input_blocks")

    def _attention(self) -> tuple[AttentionForm | None, str | None]:
        """The kind of attention of this network; where it has none of ours, why not."""
        if self._is_unet or not (self.settings.inject or self.settings.reads_word):
            return UNET, None
        if is_flux(self.unet):
            return FLUX, None
        name = type(self.unet).__name__
        return None, f"units are fused only: KV-Injection does not know the attention of {name}"

    @property
    def _pictures(self) -> int | None:
        """How many pictures are sampled."""
        return None if self._shape is None else int(self._shape[0])

    def _describe(self, x: Tensor, cond: Any, chunks: int, options: Mapping[str, Any]) -> Call:
        """The call of the network that this one prepares: chunk after chunk, all pictures each."""
        here = max(1, len(x) // max(1, chunks))
        total = self._pictures or here
        shown = list(range(here)) if here == total else _window(options, here)
        size = (int(x.shape[-2]), int(x.shape[-1]))
        whole = shown is not None and (self._shape is None or size == tuple(self._shape[-2:]))
        if not self._is_unet:
            size = (-(-size[0] // _PATCH), -(-size[1] // _PATCH))
        conditional = []
        if whole:
            chunk = self._read_chunk(cond, here, options)
            conditional = [] if chunk is None else [chunk * here + n for n in range(here)]
        pictures = [shown[row % here] for row in range(len(x))] if shown else []
        return Call(size, self._step(options), pictures, conditional, None, whole, total)

    def _step(self, options: Mapping[str, Any]) -> int:
        """The sampler's step, by the noise level: a second evaluation may be the next step's."""
        levels, now = options.get("sample_sigmas"), options.get("sigmas")
        if levels is None or now is None:
            return 0
        if now is not self._sigmas[0]:  # a device is asked once a step
            level = now[:1].to(levels)
            reached = int((levels >= level * (1 - 1e-4)).sum())
            self._sigmas = (now, min(max(reached - 1, 0), max(0, len(levels) - 2)))
        return self._sigmas[1]

    def _read_chunk(self, cond: Any, here: int, options: Mapping[str, Any]) -> int | None:
        """Which chunk of the batch was encoded from the foreground word's prompt."""
        marks = list(options.get("cond_or_uncond", ()))
        names = list(options.get("uuids", range(len(marks))))
        context = cond.get("c_crossattn")
        found = [
            self._entry_of(name, context, n * here) for n, name in enumerate(names[: len(marks)])
        ]
        read = [n for n, entry in enumerate(found) if entry is not None and entry.has_word]
        if not read:  # the conditioning was changed behind our node
            read = [n for n, entry in enumerate(found) if entry is None and marks[n] == 0]
        return next((n for n in read if marks[n] == 0), next(iter(read), None))

    def _entry_of(self, name: Any, context: Tensor | None, row: int) -> Entry | None:
        """The positive conditioning that this row of the batch is from; None for none of ours."""
        if context is None or row >= len(context):
            return None
        if name not in self._known:
            own = context[row : row + 1]
            alike = [entry for entry in self.entries if begins_alike(own, entry.embedding)]
            self._known[name] = next((e for e in alike if e.has_word), next(iter(alike), None))
        return self._known[name]

    def close_session(self) -> None:
        """Take away what the sessions have put into the host's networks; may be repeated."""
        quietly(self._undo)
        quietly(super().close_session)
        if self._part is not None:
            quietly(self._part.close)

    def account(self) -> Account:
        """What was done so far, of parts of the picture too."""
        done = super().account()
        if self._part is None or self.aside is not None:
            return done or Account(notes=[_NOT_ASKED])
        part = self._part.account()
        return part if done is None else done.joined(part)

    def end(self) -> Record:
        """The sampling is over, whatever ended it: undo everything; what was done."""
        for session in self._fused:
            # Interrupted, or something failed.
            session.ended_early |= sys.exc_info()[1] is not None
        self.close_session()
        try:
            shown = self.session or self._part
            record = Record.of(self.account(), shown, self._pictures or 1)
        except Exception as error:
            log.warning("Cross-ControlNet cannot tell what it did\n%s", told(error))
            record = Record(Account(notes=[f"what was done is not known: {error}"]))
        self.session = self._part = None
        self._fused, self._known = {}, {}
        return record


def _window(options: Mapping[str, Any], here: int) -> list[int] | None:
    """Which pictures a sliding window shows; None where there is none."""
    indexes = getattr(options.get("context_window"), "index_list", None)
    if indexes is None:
        indexes = (options.get("ad_params") or {}).get("sub_idxs")
    if indexes is None or len(indexes) != here:
        return None
    return [int(n) for n in indexes]


def _nothing() -> None:
    pass

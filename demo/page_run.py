"""One click of the page: the plain sum and Cross-ControlNet from the same noise."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lib_ccn.fusion import fuse_residuals
from lib_ccn.hosts.diffusers import CrossControlNet, cross_controlnet
from lib_ccn.rules import AVERAGED
from lib_ccn.session import Session
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.webui.pictures import Front, fronts_of

from .demo_model import generate, load_pipeline, native_size, with_controlnets
from .examples import bundled_examples
from .figures import to_image
from .options import BUNDLED_GUIDANCE, BUNDLED_MASK_REDUCTION

log = logging.getLogger(__name__)

SUM, FUSED = "Plain sum", "Cross-ControlNet"
STEPS = 20
# The first example, finished, which the page shows at first. `python -m demo.page_run` makes it
# anew where the model or the method has changed; a test tells when it must.
FIRST = Path(__file__).with_name("first")
_PREVIEW = 32  # latents of at most this side are decoded for a preview


class OrderError(Exception):
    """What was asked for cannot be made; the message says why."""


class Cancelled(Exception):  # noqa: N818
    """The generation was cancelled."""


@dataclass(frozen=True)
class UnitOrder:
    """One condition: its number on the page, which ControlNet reads it, and [3, H, W] in [0, 1]."""

    number: int
    net: int
    condition: Tensor


@dataclass(frozen=True)
class Order:
    """What one click asks for; `settings` is None where the method is off."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    units: tuple[UnitOrder, ...]
    settings: Settings | None


@dataclass(frozen=True)
class Progress:
    """A step is done: which of the two pictures, how many steps of all, what it looks like."""

    stage: str
    step: int
    steps: int
    share: float
    preview: Image.Image


@dataclass(frozen=True)
class Layer:
    """A residual: its number, channels, and the sides of its map."""

    number: int
    channels: int
    height: int
    width: int
    is_middle: bool


@dataclass
class Record:
    """What one generation decided.

    Attributes:
        layers: the residuals, the middle one last.
        decisions: by step and layer, int8 [h, w], or [C] where channels decide; a unit's place
            among the fused ones, or `AVERAGED`.
        fronts: by step, of the steps that had a mask, the places in front; a unit is counted as
            among the order's.
        step: the present one, counted by whoever follows the sampler.
    """

    layers: list[Layer] = field(default_factory=list)
    decisions: dict[int, list[Tensor]] = field(default_factory=dict)
    fronts: dict[int, list[Front]] = field(default_factory=dict)
    step: int = 0

    @contextmanager
    def listening(self, control: CrossControlNet) -> Iterator[None]:
        """Keep what the generations of `control` decide inside; `step` is counted by the caller."""

        control.on_fused = self._keep
        try:
            yield
        finally:
            control.on_fused = None

    def _keep(self, session: Session, outputs: Any) -> None:
        fronts = fronts_of(session, 0)
        if fronts:
            self.fronts[self.step] = fronts
        fusable = [unit for unit in session.units if unit in outputs and unit.eligible]
        if len(fusable) < 2:
            return
        shapes = [residual.shape for residual in outputs[fusable[0]]]
        self.layers = [
            Layer(n, channels, height, width, is_middle=n == len(shapes) - 1)
            for n, (_, channels, height, width) in enumerate(shapes)
        ]
        decided = [] if session.winners is None else session.winners.of_all(0)
        if session.settings.fusion == "layers" and not decided:  # nobody has a place yet
            decided = [
                torch.full((layer.height, layer.width), AVERAGED, dtype=torch.int8)
                for layer in self.layers
            ]
        if not decided:  # nobody wins in this rule: the page tells what PixFusion would decide
            # The last row is the conditional one, with and without guidance.
            units = [[residual[-1:] for residual in outputs[unit]] for unit in fusable]
            found: dict[int, Tensor] = {}
            fuse_residuals(units, "pix", session.settings.delta, found.__setitem__)
            decided = [found[layer.number][0] for layer in self.layers]
        self.decisions[self.step] = [decision.cpu() for decision in decided]


@dataclass(frozen=True)
class Outcome:
    """What came of an order; the fused picture is None where the method was off.

    Attributes:
        names: of the ControlNets, by place among the order's units.
        notes: what was done, in one line.
        seconds: of both pictures together.
    """

    order: Order
    plain: Image.Image
    fused: Image.Image | None
    record: Record
    names: tuple[str, ...]
    notes: str
    seconds: float


class Studio:
    """A pipeline with its ControlNets; makes one order at a time, whoever asks.

    Args:
        pipe: what `demo_model.load_pipeline` returns.
        names: of its ControlNets, as the page shows them.
    """

    def __init__(self, pipe: Any, names: Sequence[str]) -> None:
        self.pipe = pipe
        self.names = tuple(names)
        self.side = native_size(pipe)
        self._busy = threading.Lock()
        self._plain: tuple[Any, Image.Image] | None = None

    def make(
        self,
        order: Order,
        on_progress: Callable[[Progress], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Make both pictures.

        Raises:
            OrderError: fewer than two units.
            SettingsError: a setting is refused.
            Cancelled: `is_cancelled` said so, before the next step.
        """
        settings = self._settings(order)
        with self._busy:
            if is_cancelled():
                raise Cancelled
            return self._make(order, settings, on_progress, is_cancelled)

    def _settings(self, order: Order) -> Settings | None:
        if len(order.units) < 2:
            raise OrderError(
                "Two ControlNets or more are needed: switch another condition on, since there is "
                "nothing to fuse with one alone."
            )
        settings = order.settings
        if settings is None:
            return None
        places = {unit.number: place for place, unit in enumerate(order.units)}
        changes: dict[str, Any] = {
            name: _placed(name, getattr(settings, name), places)
            for name in ("foreground_unit", "background_unit")
        }
        changes["layers"] = [
            replace(layer, unit=_placed("layers", layer.unit, places)) for layer in settings.layers
        ]
        settings = settings.replace(**changes)
        settings.check_usable()
        # The mask is to be seen, also where nothing is injected.
        lacking = any(
            layer.mask_source == "image" and layer.mask_image is None
            for layer in settings.layers_in_front
        )
        return settings if lacking else settings.replace(show_mask=True)

    def _make(
        self,
        order: Order,
        settings: Settings | None,
        on_progress: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        began = time.monotonic()
        pipe = with_controlnets(self.pipe, [unit.net for unit in order.units])
        record = Record()
        known = self._known(order)
        stages = ([] if known else [SUM]) + ([FUSED] if settings else [])
        total, done = max(1, len(stages) * order.steps), 0

        def stepped(stage: str) -> Callable[[int], None]:
            def on_step(_count: int) -> None:
                nonlocal done
                if is_cancelled():
                    raise Cancelled
                done += 1
                step = (done - 1) % order.steps + 1
                record.step = step
                preview = to_image(_preview(pipe))
                on_progress(Progress(stage, step, order.steps, done / total, preview))

            return on_step

        plain = known or self._generate(pipe, order, stepped(SUM))
        self._plain = (_key(order), plain)
        fused, notes = None, "Cross-ControlNet is switched off."
        if settings is not None:
            record.step = 0
            with cross_controlnet(pipe, settings) as control, record.listening(control):
                fused = self._generate(pipe, order, stepped(FUSED))
            notes = control.summary()
        seconds = time.monotonic() - began
        names = tuple(self.names[unit.net] for unit in order.units)
        return Outcome(order, plain, fused, record, names, notes, seconds)

    def _generate(self, pipe: Any, order: Order, on_step: Callable[[int], None]) -> Image.Image:
        made = generate(
            pipe,
            [order.prompt],
            [order.seed],
            [unit.condition[None] for unit in order.units],
            steps=order.steps,
            guidance_scale=order.guidance_scale,
            negative_prompt=order.negative_prompt,
            on_step=on_step,
        )
        if not bool(torch.isfinite(made).all()):
            raise OrderError("The picture holds numbers that are not finite.")
        return to_image(made[0])

    def _known(self, order: Order) -> Image.Image | None:
        """The plain sum, where only the method's settings have changed since the last order."""
        return self._plain[1] if self._plain and self._plain[0] == _key(order) else None


def _placed(name: str, number: int | str, places: Mapping[int, int]) -> int | str:
    """A unit's place among those that are on, of its number on the page."""
    if isinstance(number, str):
        return number
    if number not in places:
        automatic = "" if name == "layers" else "'auto' or "
        raise SettingsError(name, number, f"{automatic}one of {sorted(places)}, which are on")
    return places[number]


def _key(order: Order) -> Any:
    units = tuple((u.net, u.condition.numpy().tobytes()) for u in order.units)
    return replace(order, units=(), settings=None), units


@torch.inference_mode()
def _preview(pipe: Any) -> Tensor:
    """The picture [3, H, W] as it is expected to become, small."""
    latents = pipe.scheduler.model_outputs[-1]  # UniPC keeps its predictions of the clean latents
    side = max(latents.shape[-2:])
    if side > _PREVIEW:
        latents = F.interpolate(latents, scale_factor=_PREVIEW / side, mode="area")
    vae = pipe.vae
    decoded = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
    return (decoded[0].float().cpu() / 2 + 0.5).clamp(0, 1)


def finished() -> tuple[Image.Image, Image.Image]:
    """The plain sum and Cross-ControlNet's picture of the first example, in the model's size."""
    plain, fused = (Image.open(FIRST / name).convert("RGB") for name in ("plain.png", "fused.png"))
    return plain, fused


def make_first() -> Outcome:
    """Make the first example as the page would, with all that it shows at first."""
    example = bundled_examples()[0]
    order = Order(
        prompt=example.prompt,
        negative_prompt="",
        seed=example.seed,
        steps=STEPS,
        guidance_scale=BUNDLED_GUIDANCE,
        units=(UnitOrder(0, 0, example.foreground), UnitOrder(1, 1, example.background)),
        settings=Settings(foreground_word=example.word, mask_reduction=BUNDLED_MASK_REDUCTION),
    )
    return Studio(load_pipeline(), ("outline", "regions")).make(order)


def main() -> None:
    """Write both pictures."""
    outcome = make_first()
    assert outcome.fused is not None
    FIRST.mkdir(exist_ok=True)
    outcome.plain.save(FIRST / "plain.png", optimize=True)
    outcome.fused.save(FIRST / "fused.png", optimize=True)


if __name__ == "__main__":
    main()

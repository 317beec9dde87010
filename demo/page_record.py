"""What a generation decides, step by step: who wins in each layer, and the mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lib_ccn.fusion import fuse_residuals
from lib_ccn.hosts.diffusers import CrossControlNet
from lib_ccn.session import Session


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
        masks: bool [h, w] by step, of the steps that had one.
        step: the present one, counted by whoever follows the sampler.
    """

    layers: list[Layer] = field(default_factory=list)
    decisions: dict[int, list[Tensor]] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)
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
        if session.place.mask is not None:
            self.masks[self.step] = session.place.mask[0].cpu()
        fusable = [unit for unit in session.units if unit in outputs and unit.eligible]
        if len(fusable) < 2:
            return
        # The last row is the conditional one, with and without guidance.
        units = [[residual[-1:].float() for residual in outputs[unit]] for unit in fusable]
        settings, last = session.settings, len(units[0]) - 1
        self.layers = [
            Layer(n, channels, height, width, is_middle=n == last)
            for n, (_, channels, height, width) in enumerate(r.shape for r in units[0])
        ]
        # Of the other rules the page tells what PixFusion would decide.
        mode = "pix+channel" if settings.fusion == "pix+channel" else "pix"
        found: dict[int, Tensor] = {}
        fuse_residuals(units, mode, settings.delta, found.__setitem__)
        self.decisions[self.step] = [found[layer.number][0].cpu() for layer in self.layers]

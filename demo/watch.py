"""A generation watched from inside: residuals, queries, keys, the word's map and the mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lib_ccn.attention import self_attention_layers
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings

from .demo_model import generate
from .examples import Example
from .options import BUNDLED_GUIDANCE


@dataclass
class Watched:
    """What one generation showed.

    Attributes:
        picture: [3, H, W].
        residuals: by unit, the residuals [1, C, h, w] at the watched step, conditional half.
        queries, keys: by unit and position of the attention, [1, N, C], at the same step.
        heats: the word's map [h, w] by step; masks: the mask [h, w] by step.
    """

    picture: Tensor
    residuals: list[list[Tensor]]
    queries: list[dict[int, Tensor]]
    keys: list[dict[int, Tensor]]
    heats: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """One example, and how it is made.

    Attributes:
        pipe: the demo model's.
        example: prompt, word, conditions.
        steps: of the sampler.
        watch: the step whose residuals are shown.
        settings: of the full method.
    """

    pipe: Any
    example: Example
    steps: int
    watch: int
    settings: Settings

    def picture(
        self, settings: Settings, on_step: Callable[[Any], None] = lambda _: None
    ) -> Tensor:
        """The picture [3, H, W] under `settings`; `on_step` is given the handle."""
        example = self.example
        with cross_controlnet(self.pipe, settings) as control:
            return generate(
                self.pipe,
                [example.prompt],
                [example.seed],
                [example.foreground[None], example.background[None]],
                steps=self.steps,
                guidance_scale=BUNDLED_GUIDANCE,
                on_step=lambda _: on_step(control),
            )[0]

    def watched(self) -> Watched:
        """Generate without injection, so that every unit's own keys and residuals can be seen."""
        found = Watched(torch.empty(0), [[], []], [{}, {}], [{}, {}])
        step = 0
        handles = []
        for number, net in enumerate(self.pipe.controlnet.nets):

            def keep(_m: Any, _a: Any, out: Any, number: int = number) -> None:
                if step == self.watch:
                    down, middle = out[0], out[1]
                    found.residuals[number] = [r[-1:].float() for r in (*down, middle)]

            handles.append(net.register_forward_hook(keep))
            for position, layer in enumerate(self_attention_layers(net)):
                for name, kept in (("to_q", found.queries), ("to_k", found.keys)):

                    def hear(
                        _m: Any,
                        _a: Any,
                        out: Tensor,
                        kept: Any = kept[number],
                        position: int = position,
                    ) -> None:
                        if step == self.watch and position not in kept:
                            kept[position] = out[-1:].float()

                    handles.append(getattr(layer.module, name).register_forward_hook(hear))

        def stepped(control: Any) -> None:
            nonlocal step
            session = control.session
            if session.place.mask is not None and session.place.heat is not None:
                found.masks[step], found.heats[step] = session.place.mask[0], session.place.heat[0]
            step += 1

        try:
            settings = self.settings.replace(inject=False, show_mask=True)
            found.picture = self.picture(settings, stepped)
        finally:
            for handle in handles:
                handle.remove()
        return found

"""The figure of two objects that do not mix: of `docs/tutorial.md`, drawn by `run.py explain`."""

from __future__ import annotations

from typing import Any

from PIL import Image

from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings
from lib_ccn.webui.pictures import fronts_of

from .demo_model import fitting, generate
from .examples import two_object_examples
from .figures import Column, Row, draw_figure, places_image, to_image
from .options import BUNDLED_GUIDANCE

RULES = {"Plain sum": "sum", "The paper's": "pix+channel", "Layers": "layers"}


def layers_figure(pipe: Any, steps: int, settings: Settings) -> Image.Image:
    """Two objects, each with a ControlNet of its own: added up, the paper's fusion, layers.

    Args:
        pipe: the demo model's, with the ControlNet for several objects.
        steps: of the sampler.
        settings: of the method; there is no injection.
    """
    examples = two_object_examples()
    pipe = fitting(pipe, examples[0])
    rows = []
    for example in examples:
        pictures = [to_image(condition) for condition in example.conditions]
        for rule in RULES.values():
            chosen = settings.replace(
                fusion=rule, inject=False, foreground_word="", layers=example.layers
            )
            with cross_controlnet(pipe, chosen) as control:
                made = generate(
                    pipe,
                    [example.prompt],
                    [example.seed],
                    [condition[None] for condition in example.conditions],
                    steps=steps,
                    guidance_scale=BUNDLED_GUIDANCE,
                )
            pictures.append(to_image(made[0]))
        assert control.session is not None
        pictures.append(places_image(pictures[-1], fronts_of(control.session, 0)))
        rows.append(Row(example.prompt, f"layers: {example.layers}", pictures))
    names = ["Unit 0", "Unit 1", "Unit 2", *RULES, "Their places"]
    footer = (
        f"UniPC, {steps} steps, no injection. Scenes that were chosen: the plain sum keeps less of "
        "the objects, and loses one where one is in front of the other."
    )
    return draw_figure([Column(name) for name in names], rows, footer, cell=192)

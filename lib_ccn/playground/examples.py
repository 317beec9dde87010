"""Conflicting examples: an object's outline, and a landscape's map that knows no object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import draw

# One seed per scene, far from the trainer's, chosen by eye: every shape, and every kind of region.
_SCENES = (1_000_047, 1_000_029, 1_000_108, 1_000_103, 1_000_002, 1_000_034)


@dataclass(frozen=True)
class Example:
    """A prompt with two conditions.

    Attributes:
        prompt: what is asked for.
        word: of the prompt, that names the foreground; "" leaves it to the method.
        foreground: [3, H, W] in [0, 1], the condition of the object.
        background: [3, H, W] in [0, 1], the condition of everything else.
        seed: of the noise.
        object_mask: bool [H, W], where the object should be, if that is known.
    """

    prompt: str
    word: str
    foreground: Tensor
    background: Tensor
    seed: int = 0
    object_mask: Tensor | None = None


def bundled_examples(seed: int = 0) -> list[Example]:
    """Six fixed scenes; `seed` is the first one's, the others count on from it."""
    examples = []
    for number, scene_seed in enumerate(_SCENES):
        scene = draw(1, torch.Generator().manual_seed(scene_seed), object_free=0)
        examples.append(
            Example(
                prompt=scene.captions[0],
                word=scene.shape[0],
                foreground=scene.outline[0],
                background=scene.landscape_map[0],
                seed=seed + number,
                object_mask=scene.object_mask[0],
            )
        )
    return examples

"""Small models with random weights: ComfyUI knows them by their tensors' names and shapes.

Text encoder and VAE have full size, as the host takes theirs from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hosts import weights
from hosts.weights import SD15, Shapes, adapter, checkpoint, control_lora, controlnet

SMALL = replace(SD15, width=64, time=256)  # as in probe/small.py


def files() -> dict[str, Callable[[], Shapes]]:
    """What to write, below the models folder."""
    found: dict[str, Callable[[], Shapes]] = {
        "checkpoints/ccn-random-sd15": lambda: checkpoint(SMALL),
        "controlnet/ccn-random-a": lambda: controlnet(SMALL),
        "controlnet/ccn-random-b": lambda: controlnet(SMALL),
        "controlnet/ccn-random-c": lambda: controlnet(SMALL),
        "controlnet/ccn-random-t2iadapter": lambda: adapter(SMALL),
        "controlnet/ccn-random-controllora": lambda: control_lora(SMALL),
    }
    return {f"{name}.safetensors": shapes for name, shapes in found.items()}


def write(folder: Path) -> None:
    """Write what is not there yet."""
    for name, shapes in files().items():
        weights.write(folder / name, shapes())

"""Loading what the benchmark samples with: the demo model, Stable Diffusion 1.5, or SDXL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from demo.demo import load_family
from demo.demo_model import BUNDLED, load_pipeline


def load(
    model: str | None,
    controlnets: Sequence[str] | None,
    device: str,
    dtype: torch.dtype | None = None,
) -> Any:
    """A pipeline with ControlNets and UniPC; on a CPU its weights lie channels last.

    There are two; the bundled model has a third, for outlines of several objects.

    Args:
        model: folder or hub id of a Stable Diffusion 1.5 or an SDXL; None is the bundled model.
        controlnets: the foreground's first.
        device: "cpu", "cuda", "cuda:1", "mps".
        dtype: of the weights; None is float32 on a CPU and float16 elsewhere.

    Raises:
        ModelError: something is missing or cannot be used.
    """
    if model is not None and is_xl(model):
        pipe = load_family("sdxl", model, controlnets, device)
        if dtype is not None:
            pipe.to(dtype)
    else:
        pipe = load_pipeline(model, controlnets, device, dtype, several=True)
    if device == "cpu":  # a third faster there
        for part in (pipe.unet, pipe.vae, *pipe.controlnet.nets):
            part.to(memory_format=torch.channels_last)
    return pipe


def weights_digest(folder: Path = BUNDLED) -> str:
    """SHA-256 of a model folder's weights, by the names of their files."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        found.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def is_xl(model: str) -> bool:
    """Whether a folder, or a hub id by its name, holds an SDXL."""
    index = Path(model).expanduser() / "model_index.json"
    if index.is_file():
        try:
            return "XL" in str(json.loads(index.read_text("utf-8")).get("_class_name"))
        except (ValueError, AttributeError):
            return False
    return "xl" in model.rpartition("/")[2].lower()

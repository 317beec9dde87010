"""Small models with random weights: ComfyUI knows them by their tensors' names and shapes.

Text encoder and VAE have full size, as the host takes theirs from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from comfyui.graphs import FLUX_POOLED, FLUX_TEXT
from hosts import weights
from hosts.weights import (
    SD15,
    SDXL,
    Shapes,
    adapter,
    checkpoint,
    control_lora,
    controlnet,
    conv,
    linear,
    unet,
)

SMALL = replace(SD15, width=64, time=256)  # as in probe/small.py


SMALL_XL = replace(SDXL, width=64, time=256)
# FLUX: heads have 128 features, as the host's table has it.
FLUX_WIDTH, FLUX_PACKED = 256, 64
HINT_STRIDES = 8  # convolutions that a condition passes


def flux_blocks(double: int, single: int) -> Shapes:
    """The blocks of FLUX and what is in front of them."""
    width, head = FLUX_WIDTH, (128,)
    shapes = linear("img_in", FLUX_PACKED, width) | linear("txt_in", FLUX_TEXT, width)
    for name, inner in (("time_in", 256), ("guidance_in", 256), ("vector_in", FLUX_POOLED)):
        shapes |= linear(f"{name}.in_layer", inner, width)
        shapes |= linear(f"{name}.out_layer", width, width)
    for index in range(double):
        for side in ("img", "txt"):
            name = f"double_blocks.{index}.{side}"
            shapes |= linear(f"{name}_mod.lin", width, 6 * width)
            shapes |= linear(f"{name}_attn.qkv", width, 3 * width)
            shapes |= linear(f"{name}_attn.proj", width, width)
            shapes |= {f"{name}_attn.norm.{part}_norm.scale": head for part in ("query", "key")}
            shapes |= linear(f"{name}_mlp.0", width, 4 * width)
            shapes |= linear(f"{name}_mlp.2", 4 * width, width)
    for index in range(single):
        name = f"single_blocks.{index}"
        shapes |= linear(f"{name}.linear1", width, 7 * width)
        shapes |= linear(f"{name}.linear2", 5 * width, width)
        shapes |= linear(f"{name}.modulation.lin", width, 3 * width)
        shapes |= {f"{name}.norm.{part}_norm.scale": head for part in ("query", "key")}
    return shapes


def flux() -> Shapes:
    """A small FLUX."""
    shapes = flux_blocks(3, 4) | linear("final_layer.linear", FLUX_WIDTH, FLUX_PACKED)
    return shapes | linear("final_layer.adaLN_modulation.1", FLUX_WIDTH, 2 * FLUX_WIDTH)


def flux_controlnet(single: int = 0) -> Shapes:
    """A ControlNet of XLabs' kind with double-stream blocks only, or of Mistoline's with both."""
    shapes = flux_blocks(2, single) | linear("pos_embed_input", FLUX_PACKED, FLUX_WIDTH)
    widths = [3] + [16] * HINT_STRIDES
    if not single:
        for index in range(2):
            shapes |= linear(f"controlnet_blocks.{index}", FLUX_WIDTH, FLUX_WIDTH)
        for index in range(HINT_STRIDES):
            shapes |= conv(f"input_hint_block.{2 * index}", widths[index], 16)
        return shapes
    for index in range(2):
        shapes |= linear(f"controlnet_blocks.{index}.linear", FLUX_WIDTH, FLUX_WIDTH)
    for index in range(single):
        shapes |= linear(f"single_controlnet_blocks.{index}.linear", FLUX_WIDTH, FLUX_WIDTH)
    for index, kernel in enumerate((3, 1, 3, 3, 3, 3, 3, 3, 1, 3)):
        inner = 3 if index == 0 else 16
        shapes |= conv(f"input_cond_block.encoder.{2 * index}", inner, 16, kernel)
    return shapes


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
    found |= {
        "diffusion_models/ccn-random-sdxl": lambda: unet(SMALL_XL),
        "controlnet/ccn-random-sdxl-a": lambda: controlnet(SMALL_XL),
        "controlnet/ccn-random-sdxl-b": lambda: controlnet(SMALL_XL),
        "diffusion_models/ccn-random-flux": flux,
        "controlnet/ccn-random-flux-a": flux_controlnet,
        "controlnet/ccn-random-flux-b": flux_controlnet,
        "controlnet/ccn-random-flux-both-a": lambda: flux_controlnet(3),
        "controlnet/ccn-random-flux-both-b": lambda: flux_controlnet(3),
    }
    return {f"{name}.safetensors": shapes for name, shapes in found.items()}


def write(folder: Path) -> None:
    """Write what is not there yet."""
    for name, shapes in files().items():
        weights.write(folder / name, shapes())

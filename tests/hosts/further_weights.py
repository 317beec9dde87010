"""Random weights that only some tests need, each made when the first of them asks for it.

A second checkpoint of Stable Diffusion 1.5, a Union ControlNet and the two halves of InstantID of
its shape, and Stable Diffusion 2.1 with ControlNets of its own: 9 GB in all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hosts.server import WORK, Installation, link_or_copy
from hosts.weights import (
    SD15,
    Shapes,
    checkpoint,
    controlnet,
    linear,
    norm,
    open_clip,
    prefixed,
    unet,
    vae,
    write,
)

SD21 = replace(SD15, context=1024, linear=True)
UNION_TYPES = 8
FACE, FACE_TOKENS, FACE_DEPTH, FACE_MODEL = 512, 16, 4, 1280


def union() -> Shapes:
    """A ControlNet for several kinds of condition, as diffusers makes and the WebUIs load it."""
    import torch
    from diffusers import ControlNetUnionModel

    with torch.device("meta"):
        model = ControlNetUnionModel(
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            block_out_channels=tuple(multiplier * SD15.width for multiplier in SD15.multipliers),
            cross_attention_dim=SD15.context,
            attention_head_dim=8,
            num_control_type=UNION_TYPES,
            addition_time_embed_dim=256,
            conditioning_embedding_out_channels=(16, 32, 96, 256),
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def face_adapter() -> Shapes:
    """The IP-Adapter of InstantID: from a face's numbers to tokens beside those of the prompt."""
    width = FACE_MODEL
    shapes: Shapes = {"latents": (1, FACE_TOKENS, width)}
    shapes |= linear("proj_in", FACE, width) | linear("proj_out", width, SD15.context)
    shapes |= norm("norm_out", SD15.context)
    for index in range(FACE_DEPTH):
        name = f"layers.{index}"
        shapes |= norm(f"{name}.0.norm1", width) | norm(f"{name}.0.norm2", width)
        shapes |= linear(f"{name}.0.to_q", width, width, bias=False)
        shapes |= linear(f"{name}.0.to_kv", width, 2 * width, bias=False)
        shapes |= linear(f"{name}.0.to_out", width, width, bias=False)
        shapes |= norm(f"{name}.1.0", width) | linear(f"{name}.1.1", width, 4 * width, bias=False)
        shapes |= linear(f"{name}.1.3", 4 * width, width, bias=False)
    # The cross-attentions of the UNet: down, up, middle.
    down = [multiplier * SD15.width for multiplier in SD15.multipliers[:3] for _ in range(2)]
    up = [multiplier * SD15.width for multiplier in SD15.multipliers[2::-1] for _ in range(3)]
    adapter: Shapes = {}
    for index, outer in enumerate([*down, *up, down[-1]]):
        for part in ("to_k_ip", "to_v_ip"):
            adapter |= linear(f"{2 * index + 1}.{part}", SD15.context, outer, bias=False)
    return prefixed("image_proj.", shapes) | prefixed("ip_adapter.", adapter)


def checkpoint_sd21() -> Shapes:
    """Stable Diffusion 2.1, whose text encoder is OpenCLIP's ViT-H."""
    shapes = prefixed("model.diffusion_model.", unet(SD21)) | prefixed("first_stage_model.", vae())
    return shapes | prefixed("cond_stage_model.", open_clip(width=1024, layers=24))


def files() -> dict[str, Callable[[], Shapes]]:
    """What can be asked for: paths below the WebUI's data folder, and how to get the shapes."""
    found: dict[str, Callable[[], Shapes]] = {
        "Stable-diffusion/ccn-random-sd15-other": lambda: checkpoint(SD15),
        "Stable-diffusion/ccn-random-sd21": checkpoint_sd21,
        "ControlNet/ccn-random-sd21-a": lambda: controlnet(SD21),
        "ControlNet/ccn-random-sd21-b": lambda: controlnet(SD21),
        "ControlNet/ccn-random-union": union,
        # sd-webui-controlnet knows both by "instant_id" in their names.
        "ControlNet/ccn-random-instant_id-control": lambda: controlnet(SD15),
        "ControlNet/ccn-random-instant_id-face": face_adapter,
    }
    return {f"models/{name}.safetensors": shapes for name, shapes in found.items()}


def asked_for(items: Iterable[Any], family: str) -> set[str]:
    """The stems of the files that pytest's `items` need on a WebUI of this family."""
    found: set[str] = set()
    for item in items:
        families = item.get_closest_marker("families")
        skipped = item.get_closest_marker("skip") or (families and family not in families.args)
        if not skipped:
            found.update(stem for mark in item.iter_markers("models") for stem in mark.args)
    return found


def add(installation: Installation, stems: Collection[str]) -> None:
    """Have these files in the WebUI's data folder, made where they are missing.

    Forge and its kin look for ControlNets when they start, and no more.
    """
    for relative, shapes in files().items():
        if Path(relative).stem in stems:
            write(WORK / "weights" / relative, shapes())
            link_or_copy(WORK / "weights" / relative, installation.work / relative)

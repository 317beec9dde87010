"""What the method adds to a step of SDXL and of FLUX, and what it holds in memory meanwhile.

The steps are those of the real pipelines, timed between two step callbacks, on random models of
the real architectures at a fraction of their width and depth. The memory of captured keys and
values is that of the real ControlNets at 1024x1024, counted on tensors without data.

    python -m benchmarks.family [--quick] [--device cuda] [--dtype bfloat16]
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import ControlNetModel, FluxControlNetModel
from torch import Tensor

from benchmarks.command import main
from benchmarks.random_models import random_flux, random_sdxl
from benchmarks.shapes import FLUX_CONTROLNET, SDXL_CONTROLNET
from benchmarks.timing import machine
from demo.command_line import silence_libraries
from demo.demo_model import is_flux
from lib_ccn.attention import KeyValueStore
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.joint_attention import capture_joint_keys_values, joint_attention_layers
from lib_ccn.unet_attention import capture_keys_values, self_attention_layers

PROMPT = "a red star over a green field"
WORD = {"mask_source": "word", "foreground_word": "star", "mask_threshold": 0.5}
VARIANTS: dict[str, dict[str, dict[str, Any] | None]] = {
    "sdxl": {
        "plain sum": None,
        "fusion": {"inject": False},
        "whole method (mask from a word)": WORD,
    },
    "flux": {
        "plain sum": None,
        "fusion": {"inject": False},
        "whole method (mask all ones)": {"mask_source": "all"},
        "whole method (mask from a word)": WORD,
    },
}
# A quarter of SDXL's width with all of its blocks; a quarter of FLUX's width, fewer blocks.
REDUCED: dict[str, dict[str, Any]] = {
    "sdxl": {
        "block_out_channels": (80, 160, 320),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (2, 2, 5),
        "norm_num_groups": 16,
    },
    "flux": {
        "blocks": (2, 4),
        "backbone": (4, 8),
        "num_attention_heads": 6,
        "attention_head_dim": 128,
        "axes_dims_rope": (16, 56, 56),
    },
}
TITLES = {
    "sdxl": "SDXL, a quarter as wide, {size}x{size}, batch 2",
    "flux": "FLUX, a quarter as wide, a fifth of the blocks, {size}x{size}, batch 1",
}


def run(quick: bool = False, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Seconds and ratios per family and variant; captured bytes per family at 1024x1024."""
    silence_libraries()
    results: dict[str, Any] = {"machine": machine(device), "dtype": dtype, "families": {}}
    for family, variants in VARIANTS.items():
        make = random_flux if family == "flux" else random_sdxl
        pipe = make(**({} if quick else REDUCED[family])).to(device, getattr(torch, dtype))
        latent = 16 if quick else 48
        title = TITLES[family].format(size=latent * 8)
        rounds = 1 if quick else 3
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        injected: dict[str, int] = {}
        for turn in range(1 + rounds):
            for name, settings in variants.items():
                found, layers = step_seconds(pipe, settings, latent)
                injected[name] = layers
                if turn:
                    seconds[name].append(found)
        results["families"][title] = {
            name: {
                "seconds": statistics.median(times),
                "ratio": statistics.median(
                    [a / b for a, b in zip(times, seconds["plain sum"], strict=True)]
                ),
                "injected": injected[name],
            }
            for name, times in seconds.items()
        }
    results["captured"] = {"SDXL": captured_sdxl(), "FLUX": captured_flux()}
    return results


def step_seconds(
    pipe: Any, settings: Mapping[str, Any] | None, latent: int, steps: int = 4
) -> tuple[float, int]:
    """Median seconds of the steps past the start step, and injected layers per step."""
    size = latent * pipe.vae_scale_factor
    images = list(torch.rand(2, 1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    stamps: list[float] = []

    def stepped(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if pipe.device.type == "cuda":
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return values

    arguments: dict[str, Any] = {"image": images}
    if is_flux(pipe):
        scales = {"controlnet_conditioning_scale": [1.0, 1.0], "height": size, "width": size}
        arguments = {"control_image": images, **scales}
    context: Any = nullcontext()
    if settings is not None:
        context = cross_controlnet(pipe, {"start_step": 1, "strict": True, **settings})
    with context as control:
        pipe(
            PROMPT,
            num_inference_steps=steps,
            output_type="latent",
            callback_on_step_end=stepped,
            generator=torch.Generator().manual_seed(0),
            **arguments,
        )
    layers = control.session.injected // (steps - 1) if control is not None else 0
    return statistics.median(b - a for a, b in itertools.pairwise(stamps)), layers


def captured_sdxl(size: int = 1024, batch: int = 2) -> dict[str, int]:
    """Bytes of keys and values that SDXL's ControlNet gives away per step, in float16."""
    with torch.device("meta"):
        net = ControlNetModel(**SDXL_CONTROLNET).half()
        latent = size // 8
        inputs: tuple[Tensor, ...] = (
            torch.empty(batch, 4, latent, latent, dtype=torch.float16),
            torch.zeros((), dtype=torch.int64),
            torch.empty(batch, 77, 2048, dtype=torch.float16),
            torch.empty(batch, 3, size, size, dtype=torch.float16),
        )
        added = {
            "text_embeds": torch.empty(batch, 1280, dtype=torch.float16),
            "time_ids": torch.empty(batch, 6, dtype=torch.float16),
        }
    store: KeyValueStore = {}
    with torch.no_grad(), capture_keys_values(self_attention_layers(net), store):
        net(*inputs, added_cond_kwargs=added, return_dict=False)
    return _counted(store)


def captured_flux(size: int = 1024, text: int = 512) -> dict[str, int]:
    """Bytes that a FLUX ControlNet of 5 + 10 blocks gives away per step, in bfloat16."""
    half = torch.bfloat16
    grid = size // 16
    with torch.device("meta"):
        net = FluxControlNetModel(**FLUX_CONTROLNET).to(half)
        hidden = torch.empty(1, grid * grid, 64, dtype=half)
        arguments = {
            "controlnet_cond": torch.empty_like(hidden),
            "timestep": torch.empty(1, dtype=half),
            "pooled_projections": torch.empty(1, 768, dtype=half),
            "encoder_hidden_states": torch.empty(1, text, 4096, dtype=half),
            "img_ids": torch.empty(grid * grid, 3),
            "txt_ids": torch.empty(text, 3),
        }
    store: KeyValueStore = {}
    layers = joint_attention_layers(net)
    with torch.no_grad(), capture_joint_keys_values(layers, store):
        net(hidden, **arguments, return_dict=False)
    return _counted(store)


def _counted(store: KeyValueStore) -> dict[str, int]:
    tensors = [tensor for pair in store.values() for tensor in pair]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return {"layers": len(store), "bytes": sum(storages.values())}


def markdown(results: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = []
    for title, rows in results["families"].items():
        lines += [f"{title}:", "", "| step with | ratio | seconds | injected layers |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {name} | {row['ratio']:.3f} | {row['seconds']:.3f} | {row['injected']} |"
            for name, row in rows.items()
        ]
        lines += [""]
    lines += ["Captured keys and values of the real ControlNets at 1024x1024, of half precision:"]
    lines += ["", "| family | attention blocks | MiB |", "|---|---|---|"]
    lines += [
        f"| {name} | {found['layers']} | {found['bytes'] / 2**20:.0f} |"
        for name, found in results["captured"].items()
    ]
    lines += [
        "",
        "That is two tensors per block, batch x tokens x channels each (FLUX's with the text's "
        "512 tokens, SDXL's for both halves of guidance), whatever the number of units and steps: "
        "all of it is there when the foreground unit is done, and gone before the backbone runs. "
        "A later start layer holds less.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, markdown, __doc__)

"""A demo model with random weights, in the layout of a finished training run."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import nn

from training.models import (
    NOISE_SCHEDULE,
    build_controlnet,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)


def save_random_run(folder: Path) -> Path:
    """Write every part that `training.export` needs; returns `folder`."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder / "tokenizer")
    unet = build_unet()
    build_vae().save_pretrained(folder / "vae")
    build_text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    unet.save_pretrained(folder / "unet")
    DDIMScheduler(**NOISE_SCHEDULE).save_pretrained(folder / "scheduler")
    for name in ("outline", "regions", "outlines"):
        controlnet = build_controlnet(unet)
        for path, parameter in controlnet.named_parameters():
            if "controlnet_" in path and path.endswith("weight"):
                nn.init.normal_(parameter, std=0.05)  # a new ControlNet's output is zero
        controlnet.save_pretrained(folder / f"controlnet-{name}")
    return folder

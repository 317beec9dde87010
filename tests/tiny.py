"""A random Stable Diffusion with two ControlNets, small enough for a test, built in a moment."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from training.models import build_tokenizer

WIDTH = 16


@lru_cache
def _tokenizer():
    return build_tokenizer(Path(tempfile.mkdtemp()))


def tiny_unet(**changes) -> UNet2DConditionModel:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **changes})


def tiny_controlnet(unet: UNet2DConditionModel, seed: int) -> ControlNetModel:
    """A ControlNet with random zero-convolutions, or it would have no effect."""
    torch.manual_seed(seed)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    with torch.no_grad():
        for module in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
            module.weight.normal_(std=0.3)
        controlnet.controlnet_cond_embedding.conv_out.weight.normal_(std=0.5)
        for name, parameter in controlnet.named_parameters():
            if "attn" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return controlnet.eval()


def tiny_pipeline(
    nets: int = 2, kind: type = StableDiffusionControlNetPipeline, **unet_changes
) -> StableDiffusionControlNetPipeline:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=WIDTH,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()
    # At the usual initial spread every token looks alike and no word's map has any contrast.
    with torch.no_grad():
        encoder.get_input_embeddings().weight.normal_(std=1.0)
    unet = tiny_unet(**unet_changes).eval()
    vae = AutoencoderKL(
        sample_size=16,
        latent_channels=4,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    pipe = kind(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        controlnet=[tiny_controlnet(unet, seed) for seed in range(1, nets + 1)],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def conditions(count: int = 2, size: tuple[int, int] = (32, 32), batch: int = 1) -> list[Tensor]:
    """Condition images [batch, 3, H, W]: a bright square at another place for each unit."""
    images = []
    for number in range(count):
        image = torch.zeros(batch, 3, *size)
        top = 2 + 5 * number
        image[:, :, top : top + 14, top : top + 12] = 1.0
        images.append(image)
    return images


def generate(pipe, prompt="a red star over a green field", seed=0, **changes) -> Tensor:
    """One generation's final latents; equal seeds give equal noise."""
    arguments = {
        "image": conditions(len(pipe.controlnet.nets)),
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        **changes,
    }
    return pipe(prompt, **arguments).images


def run_net(net, seed=0):
    """A tiny ControlNet's residuals for latents of 8x8, the middle one last."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    image = torch.rand(2, 3, 16, 16, generator=generator)
    down, middle = net(sample, 3, text, image, return_dict=False)
    return [*down, middle]

"""Pipelines of the real architectures at their full size, with random weights.

Every matrix is drawn so that its output is about as large as its input: activations stay in the
range of half precision, whatever the depth. Queries and keys are drawn larger, so that a word's
map has contrast. Text encoders are of the real widths and two layers deep; the VAE is narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from benchmarks.shapes import FLUX_CONTROLNET, SD15, SDXL
from demo.demo_model import BUNDLED

PROMPT, WORD = "a red star over a green field", "star"

_TINY_UNET = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "sample_size": 16}
_TINY_SD15 = {
    **_TINY_UNET,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
_TINY_SDXL = {
    **_TINY_UNET,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}
_TINY_FLUX = {
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


def random_pipeline(
    family: str, units: int = 2, device: str = "cpu", dtype: torch.dtype = torch.float32, tiny=False
) -> Any:
    """A ControlNet pipeline of "sd15", "sdxl" or "flux" with that many units; tiny for a test."""
    torch.manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        parts = _PARTS[family](units, tiny)
    for part in (*parts.values(), *parts["controlnet"]):
        if isinstance(part, nn.Module):
            draw(part.to(device, dtype))
    if family == "flux":
        parts["scheduler"] = FlowMatchEulerDiscreteScheduler()
    else:
        parts["scheduler"] = UniPCMultistepScheduler(beta_schedule="scaled_linear")
    return _made(_CLASSES[family], parts)


def with_units(pipe: Any, units: int) -> Any:
    """A pipeline of the same networks with the first ControlNets only."""
    nets = list(pipe.controlnet.nets)[:units]
    return _made(type(pipe), {**pipe.components, "controlnet": nets})


@torch.no_grad()
def draw(module: nn.Module) -> None:
    """New weights, which neither shrink nor enlarge what goes through them."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            attends = any(part in name for part in ("to_q", "to_k", "add_q_proj", "add_k_proj"))
            embeds = "embedding.weight" in name or name == "shared.weight"
            inputs = 1 if embeds else parameter[0].numel()
            nn.init.normal_(parameter, std=(1.5 if attends else 1.0) / inputs**0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    module.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _sd15(units: int, tiny: bool) -> dict[str, Any]:
    unet = UNet2DConditionModel(**(_TINY_SD15 if tiny else SD15))
    return {
        "vae": _vae(4),
        "text_encoder": _clip(CLIPTextModel, 16 if tiny else 768),
        "tokenizer": _clip_tokenizer(),
        "unet": unet,
        "controlnet": _controlnets(unet, units, tiny),
    }


def _sdxl(units: int, tiny: bool) -> dict[str, Any]:
    unet = UNet2DConditionModel(**{**SDXL, **(_TINY_SDXL if tiny else {})})
    return {
        "vae": _vae(4),
        "text_encoder": _clip(CLIPTextModel, 16 if tiny else 768),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, 16 if tiny else 1280),
        "tokenizer": _clip_tokenizer(),
        "tokenizer_2": _clip_tokenizer(),
        "unet": unet,
        "controlnet": _controlnets(unet, units, tiny),
    }


def _flux(units: int, tiny: bool) -> dict[str, Any]:
    shape = {"guidance_embeds": True, **(_TINY_FLUX if tiny else {})}
    blocks = {"num_layers": 2, "num_single_layers": 2} if tiny else FLUX_CONTROLNET
    backbone = {"num_layers": 3, "num_single_layers": 2} if tiny else {}
    tokenizer = _t5_tokenizer()
    t5 = T5Config(
        vocab_size=len(tokenizer),
        d_model=24 if tiny else 4096,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
    )
    return {
        "vae": _vae(16, shift_factor=0.1),
        "text_encoder": _clip(CLIPTextModel, 16 if tiny else 768),
        "text_encoder_2": T5EncoderModel(t5),
        "tokenizer": _clip_tokenizer(),
        "tokenizer_2": tokenizer,
        "transformer": FluxTransformer2DModel(**backbone, **shape),
        "controlnet": [FluxControlNetModel(**blocks, **shape) for _ in range(units)],
    }


def _controlnets(unet: UNet2DConditionModel, units: int, tiny: bool) -> list[ControlNetModel]:
    embedding = (4, 4, 4, 8) if tiny else (16, 32, 96, 256)
    return [
        ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=embedding, load_weights_from_unet=False
        )
        for _ in range(units)
    ]


def _vae(channels: int, **changes: Any) -> AutoencoderKL:
    """Pictures to latents of that many channels and an eighth of their sides."""
    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        force_upcast=False,
        **changes,
    )


def _clip(kind: type, width: int) -> Any:
    tokenizer = _clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


def _clip_tokenizer() -> CLIPTokenizer:
    """The demo model's, whose words are single tokens."""
    folder = BUNDLED / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, local_files_only=True)


def _t5_tokenizer() -> T5Tokenizer:
    """A SentencePiece vocabulary of the prompt's words."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -6.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in dict.fromkeys(PROMPT.split())]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _made(kind: type, parts: dict[str, Any]) -> Any:
    if kind is StableDiffusionControlNetPipeline:
        parts = {"safety_checker": None, "feature_extractor": None, **parts}
        parts["requires_safety_checker"] = False
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


_PARTS = {"sd15": _sd15, "sdxl": _sdxl, "flux": _flux}
_CLASSES = {
    "sd15": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
    "flux": FluxControlNetPipeline,
}

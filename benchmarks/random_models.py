"""Tiny SDXL and FLUX pipelines with random weights, made on the spot without a network.

They have every part of the real ones (two text encoders, micro-conditioning, double and single
streams) at a hundred-thousandth of the size. What they draw is noise: they show that a method
runs on such a pipeline, not that its pictures are good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxTransformer2DModel,
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

from demo.demo_model import BUNDLED

_WORDS = (
    "a an the over in front of and with on under behind only near star ring cross heart triangle "
    "red yellow green cyan blue pink sky hills field sand water lake grass forest"
)
_SDXL_ENCODER = (
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "use_linear_projection",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "norm_num_groups",
)
# Width of each text encoder; SDXL's contexts stand side by side.
_CLIP, _T5 = 16, 24
_FLUX_HEADS, _FLUX_DIM = 2, 16


def random_sdxl(
    nets: int = 2, kind: type | None = None, union: bool = False, seed: int = 0, **changes: Any
) -> Any:
    """An SDXL pipeline with that many ControlNets: 10 residuals, up to 2 blocks per layer.

    Args:
        nets: how many ControlNets.
        kind: the pipeline's class; None is `StableDiffusionXLControlNetPipeline`.
        union: the ControlNets are `ControlNetUnionModel` of six control types.
        seed: of all weights.
        changes: of the UNet's configuration.
    """
    torch.manual_seed(seed)
    tokenizer = _clip_tokenizer()
    unet = _lively(UNet2DConditionModel(**{**_sdxl_unet(), **changes}))
    controlnets = []
    for _ in range(nets):
        if union:
            made: Any = ControlNetUnionModel(
                **{name: unet.config[name] for name in _SDXL_ENCODER},
                conditioning_embedding_out_channels=(4, 8),
                num_trans_channel=unet.config["block_out_channels"][0],
                num_proj_channel=unet.config["block_out_channels"][0],
                num_trans_head=2,
            )
        else:
            made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
        controlnets.append(_lively(made))
    parts = {
        "vae": _vae(),
        "text_encoder": _spread(CLIPTextModel(_clip_config(tokenizer))),
        "text_encoder_2": _spread(CLIPTextModelWithProjection(_clip_config(tokenizer))),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": unet,
        "controlnet": controlnets,
        "scheduler": UniPCMultistepScheduler(beta_schedule="scaled_linear"),
    }
    return _ready((kind or StableDiffusionXLControlNetPipeline)(**parts))


def random_flux(
    nets: int = 2,
    kind: type | None = None,
    seed: int = 0,
    num_mode: int | None = None,
    blocks: tuple[int, int] = (2, 2),
    guidance_embeds: bool = True,
    backbone: tuple[int, int] = (3, 2),
    **changes: Any,
) -> Any:
    """A FLUX pipeline with that many ControlNets.

    Args:
        nets: how many ControlNets.
        kind: the pipeline's class; None is `FluxControlNetPipeline`.
        seed: of all weights.
        num_mode: of union ControlNets; None makes plain ones.
        blocks: double- and single-stream blocks of each ControlNet.
        guidance_embeds: the models are guidance-distilled, as FLUX.1-dev is.
        backbone: the transformer's blocks of each kind.
        changes: of the configuration of all of them.
    """
    torch.manual_seed(seed)
    tokenizer = _clip_tokenizer()
    tokenizer_2 = _t5_tokenizer()
    shape: dict[str, Any] = {
        "in_channels": 16,
        "attention_head_dim": _FLUX_DIM,
        "num_attention_heads": _FLUX_HEADS,
        "joint_attention_dim": _T5,
        "pooled_projection_dim": _CLIP,
        "guidance_embeds": guidance_embeds,
        "axes_dims_rope": (4, 6, 6),
        **changes,
    }
    transformer = _lively(
        FluxTransformer2DModel(num_layers=backbone[0], num_single_layers=backbone[1], **shape)
    )
    doubles, singles = blocks
    controlnets = [
        _lively(
            FluxControlNetModel(
                num_layers=doubles, num_single_layers=singles, num_mode=num_mode, **shape
            )
        )
        for _ in range(nets)
    ]
    t5 = T5Config(
        vocab_size=len(tokenizer_2), d_model=_T5, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    parts = {
        "vae": _vae(shift_factor=0.1),
        "text_encoder": _spread(CLIPTextModel(_clip_config(tokenizer))),
        "text_encoder_2": _spread(T5EncoderModel(t5)),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "transformer": transformer,
        "controlnet": controlnets,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
    return _ready((kind or FluxControlNetPipeline)(**parts))


def _sdxl_unet() -> dict[str, Any]:
    return {
        "sample_size": 32,
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 2),
        "cross_attention_dim": 2 * _CLIP,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": _CLIP + 6 * 8,
        "norm_num_groups": 4,
    }


def _vae(**changes: Any) -> AutoencoderKL:
    """Pictures to latents of four channels and half their sides."""
    return AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        force_upcast=False,
        **changes,
    )


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_CLIP,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=_CLIP,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """The bundled demo model's, whose words are single tokens."""
    folder: Path = BUNDLED / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, local_files_only=True)


def _t5_tokenizer() -> T5Tokenizer:
    """A SentencePiece vocabulary of whole words, and letters for all others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.;:!?'\"()-"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -6.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in dict.fromkeys(_WORDS.split())]
    pieces += [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _lively(module: Any) -> Any:
    """Give a new network's zero layers weights, or it would have no effect."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.3)
            elif ".attn" in name and parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def _spread(encoder: Any) -> Any:
    """At the usual initial spread every token looks alike and no word's map has any contrast."""
    with torch.no_grad():
        encoder.get_input_embeddings().weight.normal_(std=1.0)
    return encoder.eval()


def _ready(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""The real architectures, by the configurations that diffusers has for them."""

from __future__ import annotations

from typing import Any

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
# What the ControlNet has of the UNet, and the UNet alone.
SDXL_CONTROLNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL: dict[str, Any] = {
    **SDXL_CONTROLNET,
    "sample_size": 128,
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
# The transformer's are the class's defaults; a ControlNet has fewer blocks.
FLUX_CONTROLNET: dict[str, Any] = {"num_layers": 5, "num_single_layers": 10}

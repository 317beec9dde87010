"""Small models' shapes, added to the table by which ComfyUI knows a model."""

from __future__ import annotations

from comfy import supported_models

WIDTH = 64


class SmallSD15(supported_models.SD15):
    """Stable Diffusion 1.5, narrower."""

    unet_config = {**supported_models.SD15.unet_config, "model_channels": WIDTH}  # noqa: RUF012


class SmallSDXL(supported_models.SDXL):
    """Stable Diffusion XL, narrower."""

    unet_config = {**supported_models.SDXL.unet_config, "model_channels": WIDTH}  # noqa: RUF012


supported_models.models += [SmallSD15, SmallSDXL]

"""Cross-ControlNet on diffusers' pipelines with several ControlNets.

    with cross_controlnet(pipe, Settings(foreground_word="star")) as control:
        picture = pipe("a red star over a field", image=[outline, regions]).images[0]
    print(control.summary())

The pipelines of Stable Diffusion 1.5, XL and FLUX with ControlNets, their siblings for img2img,
inpainting and perturbed-attention guidance among them, call a few of their parts in a way that we
can follow: `encode_prompt` once at the start, the model of several ControlNets once per timestep.
While such a pipeline's own call runs, these have something of ours in front, which acts in that
call alone: other pipelines may share its networks and its scheduler, in other threads too, and
what is copied inside the block is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ...families import FAMILIES
from ...images import decode_masks
from ...settings import Settings, SettingsError
from . import flux, unet
from .control import CrossControlNet
from .generation import several

__all__ = ["CrossControlNet", "check_belonging", "cross_controlnet", "family_of"]


def family_of(pipe: Any) -> str:
    """Which of `lib_ccn.families.FAMILIES` a pipeline with several ControlNets belongs to.

    Raises:
        TypeError: it has no several ControlNets, or is of another family.
    """
    nets = several(pipe)
    if isinstance(nets, flux.SEVERAL):
        return "flux"
    if not isinstance(nets, unet.SEVERAL):
        supported = ", ".join(kind.__name__ for kind in (*unet.SEVERAL, *flux.SEVERAL))
        raise TypeError(
            f"pipe.controlnet is {type(nets).__name__}; expected one of {supported}, which the "
            "ControlNet pipelines of Stable Diffusion 1.5 and XL, of XL with union ControlNets, "
            "and of FLUX have when they are given a list of ControlNets"
        )
    return "sd15" if pipe.unet.config.get("addition_embed_type") is None else "sdxl"


def check_belonging(pipe: Any) -> None:
    """Look whether the ControlNets were made for a backbone like the pipeline's.

    Raises:
        TypeError: as `family_of`.
        ValueError: one was made for another family; the message names it.
    """
    host = flux if family_of(pipe) == "flux" else unet
    host.check_belonging(pipe)


@contextmanager
def cross_controlnet(
    pipe: Any,
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    prompt: str | Sequence[str] | None = None,
    weighted: bool = False,
) -> Iterator[CrossControlNet]:
    """Fuse the ControlNets of `pipe` in every generation made inside the `with` block.

    Args:
        pipe: a `StableDiffusionControlNetPipeline`, `StableDiffusionXLControlNetPipeline`,
            `StableDiffusionXLControlNetUnionPipeline` or `FluxControlNetPipeline`, or the img2img,
            inpaint or PAG sibling of one, that was given a list of ControlNets.
        settings: `Settings`, taken as they are; or a mapping for `Settings.from_dict`, in which
            what is missing takes the family's default (FLUX: delta 0.5, start step 3, the mask
            all ones; otherwise that of `Settings`). `enabled` is not asked, as the block itself
            says that the method is wanted.
        prompt: the text behind `prompt_embeds`, where the pipeline is called with those; the
            foreground word is looked for in it.
        weighted: `prompt` has weights such as "(red star:1.2)", in the WebUI's syntax.

    Yields:
        A handle with `session`, `settings` and `summary()`. Only calls of this pipeline are
        followed, each with a session of its own; not those of one made from it.

    Raises:
        SettingsError: a setting is refused, here or when a generation begins.
        TypeError: the pipeline has no several ControlNets, or is of another family.
        ValueError: a ControlNet was made for another family than the pipeline's.
        RuntimeError: the pipeline is inside another such block; or, when it is called, something
            that was asked for did not happen, and the setting `strict` is on.
    """
    family = family_of(pipe)
    chosen = FAMILIES[family].settings(settings)
    chosen.check_usable()
    decode_masks(chosen)
    nets = several(pipe).nets
    for name in ("foreground_unit", "background_unit"):
        number = getattr(chosen, name)
        # A single FLUX union ControlNet is as many units as it is given images.
        if number != "auto" and number >= len(nets) and (family != "flux" or len(nets) > 1):
            raise SettingsError(name, number, f"'auto' or 0 to {len(nets) - 1}")
    for layer in chosen.layers:
        if int(layer.unit) >= len(nets) and (family != "flux" or len(nets) > 1):
            raise SettingsError("layers", layer.text(), f"units 0 to {len(nets) - 1}")
    check_belonging(pipe)
    kind = flux.FluxGeneration if family == "flux" else unet.UNetGeneration
    control = CrossControlNet(kind, pipe, chosen, prompt, weighted)
    with control.following():
        yield control

"""Random weights with the shapes of Stable Diffusion, for trying a WebUI without a download.

``python tests/hosts/weights.py DIR [--sdxl]`` fills ``DIR/models`` as a WebUI expects it: with
Stable Diffusion 1.5, or with Stable Diffusion XL instead. The
hosts recognise a model by its tensors' names and shapes, so these are the full ones. The pictures
are noise, but finite, and every ControlNet changes them.
"""

from __future__ import annotations

import argparse
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

HINT_CHANNELS = (3, 16, 16, 32, 32, 96, 96, 256)  # the convolutions a control image passes
VAE_WIDTH, VAE_MULTIPLIERS = 128, (1, 2, 4, 4)
ZERO_CONV_STD = 0.05  # trained ones start at zero, but zeros would have no effect
ZERO_CONVS = (
    "zero_convs",
    "middle_block_out",
    "controlnet_down_blocks",
    "controlnet_mid_block",
    "controlnet_blocks",
    "controlnet_single_blocks",
)
EMBEDDING_STD = 0.02
EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight", "positional_embedding")
LORA_RANK = 4


@dataclass(frozen=True)
class UNetShape:
    """What tells one UNet from another."""

    multipliers: tuple[int, ...]
    depths: tuple[int, ...]  # transformer blocks per attention, by level
    middle_depth: int
    context: int
    linear: bool  # are the projections around the transformer blocks linear?
    pooled: int = 0  # width of the vector conditioning, 0 for none
    width: int = 320
    time: int = 1280
    blocks: int = 2  # residual blocks per level


SD15 = UNetShape((1, 2, 4, 4), (1, 1, 1, 0), 1, 768, linear=False)
SDXL = UNetShape((1, 2, 4), (0, 2, 10), 10, 2048, linear=True, pooled=2816)
# A ControlNet may be shallower than its UNet: the published "mid" size.
SDXL_MID = replace(SDXL, depths=(0, 0, 1), middle_depth=1)


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    """Puts a prefix before every name."""
    return {prefix + name: shape for name, shape in shapes.items()}


def linear(name: str, inner: int, outer: int, bias: bool = True) -> Shapes:
    """A linear layer from ``inner`` to ``outer`` features."""
    return {f"{name}.weight": (outer, inner)} | ({f"{name}.bias": (outer,)} if bias else {})


def conv(name: str, inner: int, outer: int, kernel: int = 3) -> Shapes:
    """A convolution with a square kernel."""
    return {f"{name}.weight": (outer, inner, kernel, kernel), f"{name}.bias": (outer,)}


def norm(name: str, width: int) -> Shapes:
    """A normalisation with scale and shift."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def residual(name: str, inner: int, outer: int, time: int) -> Shapes:
    """A residual block of the UNet."""
    shapes = norm(f"{name}.in_layers.0", inner) | conv(f"{name}.in_layers.2", inner, outer)
    shapes |= linear(f"{name}.emb_layers.1", time, outer)
    shapes |= norm(f"{name}.out_layers.0", outer) | conv(f"{name}.out_layers.3", outer, outer)
    if inner != outer:
        shapes |= conv(f"{name}.skip_connection", inner, outer, 1)
    return shapes


def transformer(name: str, width: int, depth: int, shape: UNetShape) -> Shapes:
    """Self-attention, cross-attention and feed-forward blocks between two projections."""

    def project(part: str) -> Shapes:
        part = f"{name}.{part}"
        return linear(part, width, width) if shape.linear else conv(part, width, width, 1)

    shapes = norm(f"{name}.norm", width) | project("proj_in") | project("proj_out")
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, context in (("attn1", width), ("attn2", shape.context)):
            shapes |= linear(f"{block}.{attention}.to_q", width, width, bias=False)
            shapes |= linear(f"{block}.{attention}.to_k", context, width, bias=False)
            shapes |= linear(f"{block}.{attention}.to_v", context, width, bias=False)
            shapes |= linear(f"{block}.{attention}.to_out.0", width, width)
        shapes |= linear(f"{block}.ff.net.0.proj", width, 8 * width)
        shapes |= linear(f"{block}.ff.net.2", 4 * width, width)
        for number in (1, 2, 3):
            shapes |= norm(f"{block}.norm{number}", width)
    return shapes


def encoder(shape: UNetShape) -> tuple[Shapes, list[int]]:
    """The part that UNet and ControlNet share, and the width of each skip connection."""
    shapes = linear("time_embed.0", shape.width, shape.time)
    shapes |= linear("time_embed.2", shape.time, shape.time)
    if shape.pooled:
        shapes |= linear("label_emb.0.0", shape.pooled, shape.time)
        shapes |= linear("label_emb.0.2", shape.time, shape.time)
    shapes |= conv("input_blocks.0.0", 4, shape.width)
    skips, inner = [shape.width], shape.width
    for level, (multiplier, depth) in enumerate(zip(shape.multipliers, shape.depths, strict=True)):
        outer = multiplier * shape.width
        for _ in range(shape.blocks):
            shapes |= residual(f"input_blocks.{len(skips)}.0", inner, outer, shape.time)
            if depth:
                shapes |= transformer(f"input_blocks.{len(skips)}.1", outer, depth, shape)
            skips.append(outer)
            inner = outer
        if level < len(shape.multipliers) - 1:
            shapes |= conv(f"input_blocks.{len(skips)}.0.op", inner, inner)
            skips.append(inner)
    shapes |= residual("middle_block.0", inner, inner, shape.time)
    shapes |= transformer("middle_block.1", inner, shape.middle_depth, shape)
    shapes |= residual("middle_block.2", inner, inner, shape.time)
    return shapes, skips


def unet(shape: UNetShape) -> Shapes:
    """A whole UNet."""
    shapes, skips = encoder(shape)
    inner, block = skips[-1], 0
    for level in reversed(range(len(shape.multipliers))):
        outer, depth = shape.multipliers[level] * shape.width, shape.depths[level]
        for index in range(shape.blocks + 1):
            name = f"output_blocks.{block}"
            shapes |= residual(f"{name}.0", inner + skips.pop(), outer, shape.time)
            if depth:
                shapes |= transformer(f"{name}.1", outer, depth, shape)
            if level and index == shape.blocks:
                shapes |= conv(f"{name}.{2 if depth else 1}.conv", outer, outer)
            inner, block = outer, block + 1
    return shapes | norm("out.0", inner) | conv("out.2", inner, 4)


def controlnet(shape: UNetShape) -> Shapes:
    """A ControlNet: the encoder, a way in for the control image, zero convolutions out."""
    shapes, skips = encoder(shape)
    channels = (*HINT_CHANNELS, shape.width)
    for index, (inner, outer) in enumerate(pairwise(channels)):
        shapes |= conv(f"input_hint_block.{2 * index}", inner, outer)
    for index, width in enumerate(skips):
        shapes |= conv(f"zero_convs.{index}.0", width, width, 1)
    return prefixed("control_model.", shapes | conv("middle_block_out.0", skips[-1], skips[-1], 1))


def control_lora(shape: UNetShape) -> Shapes:
    """A ControlLoRA: what a ControlNet adds to the encoder, the large weights at low rank."""
    shapes: Shapes = {"lora_controlnet": ()}
    own = ("input_hint_block", "zero_convs", "middle_block_out")
    for name, size in controlnet(shape).items():
        name = name.removeprefix("control_model.")
        if len(size) == 1 or name.startswith(own):
            shapes[name] = size
        else:
            name = name.removesuffix(".weight")
            shapes[f"{name}.up"] = (size[0], LORA_RANK, *[1] * (len(size) - 2))
            shapes[f"{name}.down"] = (LORA_RANK, *size[1:])
    return shapes


def adapter(shape: UNetShape = SD15) -> Shapes:
    """A T2I-Adapter for Stable Diffusion 1.5: four levels of two blocks, pooling between them."""
    widths = [multiplier * shape.width for multiplier in shape.multipliers]
    shapes, inner = conv("conv_in", 3 * 8 * 8, widths[0]), widths[0]
    for level, outer in enumerate(widths):
        for index in (0, 1):
            name = f"body.{2 * level + index}"
            if inner != outer:
                shapes |= conv(f"{name}.in_conv", inner, outer, 1)
            shapes |= conv(f"{name}.block1", outer, outer) | conv(f"{name}.block2", outer, outer, 1)
            inner = outer
    return shapes


def vae_residual(name: str, inner: int, outer: int) -> Shapes:
    """A residual block of the VAE."""
    shapes = norm(f"{name}.norm1", inner) | conv(f"{name}.conv1", inner, outer)
    shapes |= norm(f"{name}.norm2", outer) | conv(f"{name}.conv2", outer, outer)
    return shapes | (conv(f"{name}.nin_shortcut", inner, outer, 1) if inner != outer else {})


def vae_middle(width: int) -> Shapes:
    """The middle of the VAE's encoder and decoder."""
    shapes = vae_residual("mid.block_1", width, width) | vae_residual("mid.block_2", width, width)
    shapes |= norm("mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"mid.attn_1.{part}", width, width, 1)
    return shapes


def vae() -> Shapes:
    """The autoencoder between pictures and latents."""
    widths = [multiplier * VAE_WIDTH for multiplier in VAE_MULTIPLIERS]
    last = len(widths) - 1
    down, inner = conv("conv_in", 3, VAE_WIDTH), VAE_WIDTH
    for level, outer in enumerate(widths):
        for index in range(2):
            down |= vae_residual(f"down.{level}.block.{index}", inner, outer)
            inner = outer
        if level < last:
            down |= conv(f"down.{level}.downsample.conv", outer, outer)
    down |= vae_middle(inner) | norm("norm_out", inner) | conv("conv_out", inner, 8)
    up = conv("conv_in", 4, inner) | vae_middle(inner)
    for level, outer in reversed(list(enumerate(widths))):
        for index in range(3):
            up |= vae_residual(f"up.{level}.block.{index}", inner, outer)
            inner = outer
        if level:
            up |= conv(f"up.{level}.upsample.conv", outer, outer)
    up |= norm("norm_out", inner) | conv("conv_out", inner, 3)
    shapes = prefixed("encoder.", down) | prefixed("decoder.", up)
    return shapes | conv("quant_conv", 8, 8, 1) | conv("post_quant_conv", 4, 4, 1)


def clip(width: int = 768, layers: int = 12) -> Shapes:
    """CLIP's text encoder with the names of ``transformers``."""
    shapes: Shapes = {
        "embeddings.position_ids": (1, 77),
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    for index in range(layers):
        name = f"encoder.layers.{index}"
        for part in "qkv":
            shapes |= linear(f"{name}.self_attn.{part}_proj", width, width)
        shapes |= linear(f"{name}.self_attn.out_proj", width, width)
        shapes |= norm(f"{name}.layer_norm1", width) | norm(f"{name}.layer_norm2", width)
        shapes |= linear(f"{name}.mlp.fc1", width, 4 * width)
        shapes |= linear(f"{name}.mlp.fc2", 4 * width, width)
    return prefixed("transformer.text_model.", shapes | norm("final_layer_norm", width))


def open_clip(width: int = 1280, layers: int = 32) -> Shapes:
    """OpenCLIP's text encoder (bigG) with its own names."""
    shapes: Shapes = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (49408, width),
    }
    for index in range(layers):
        name = f"transformer.resblocks.{index}"
        shapes |= norm(f"{name}.ln_1", width) | norm(f"{name}.ln_2", width)
        shapes[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{name}.attn.in_proj_bias"] = (3 * width,)
        shapes |= linear(f"{name}.attn.out_proj", width, width)
        shapes |= linear(f"{name}.mlp.c_fc", width, 4 * width)
        shapes |= linear(f"{name}.mlp.c_proj", 4 * width, width)
    return prefixed("model.", shapes | norm("ln_final", width))


def checkpoint(shape: UNetShape) -> Shapes:
    """A checkpoint: UNet, VAE and text encoders."""
    shapes = prefixed("model.diffusion_model.", unet(shape))
    shapes |= prefixed("first_stage_model.", vae())
    if not shape.pooled:
        return shapes | prefixed("cond_stage_model.", clip())
    shapes |= prefixed("conditioner.embedders.0.", clip())
    return shapes | prefixed("conditioner.embedders.1.", open_clip())


def lora() -> Shapes:
    """A LoRA for the attentions of Stable Diffusion 1.5's UNet."""
    widths = [multiplier * SD15.width for multiplier in SD15.multipliers]
    places = [(f"down_blocks_{i}_attentions_{j}", widths[i]) for i in range(3) for j in range(2)]
    places += [("mid_block_attentions_0", widths[-1])]
    for level in (1, 2, 3):
        places += [(f"up_blocks_{level}_attentions_{j}", widths[3 - level]) for j in range(3)]
    shapes: Shapes = {}
    for place, width in places:
        for attention, context in (("attn1", width), ("attn2", SD15.context)):
            for part in ("to_q", "to_k", "to_v", "to_out_0"):
                inner = context if part in ("to_k", "to_v") else width
                name = f"lora_unet_{place}_transformer_blocks_0_{attention}_{part}"
                shapes |= linear(f"{name}.lora_down", inner, LORA_RANK, bias=False)
                shapes |= linear(f"{name}.lora_up", LORA_RANK, width, bias=False)
                shapes[f"{name}.alpha"] = ()
    return shapes


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws one tensor so that activations keep their size from layer to layer."""
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).clone()
    if name.endswith(".alpha"):
        return torch.tensor(float(LORA_RANK), dtype=torch.float16)
    if name.endswith("logit_scale"):
        return torch.tensor(math.log(100), dtype=torch.float16)
    if len(shape) == 1:
        fill = 1.0 if name.endswith((".weight", ".scale")) else 0.0
        if name.endswith(("final_layer_norm.bias", "ln_final.bias")):
            fill = 0.1  # the WebUIs divide by the mean of a weighted prompt's embedding
        return torch.full(shape, fill, dtype=torch.float16)
    if any(word in name for word in ZERO_CONVS):
        std = ZERO_CONV_STD
    elif name.endswith(EMBEDDINGS):
        std = EMBEDDING_STD
    else:
        std = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator).mul_(std).half()


def is_complete(path: Path, shapes: Shapes) -> bool:
    """Tells whether a file with as many bytes of tensors as these shapes need is there."""
    if not path.is_file():
        return False
    width = {name: 8 if name.endswith("position_ids") else 2 for name in shapes}
    size = sum(math.prod(shape) * width[name] for name, shape in shapes.items())
    with path.open("rb") as file:
        header = file.read(8)
    return len(header) == 8 and path.stat().st_size == 8 + struct.unpack("<Q", header)[0] + size


def write(path: Path, shapes: Shapes) -> None:
    """Writes a file of random weights, seeded by its name, unless it is there already."""
    if is_complete(path, shapes):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(zlib.crc32(path.stem.encode()))
    tensors = {name: draw(name, shape, generator) for name, shape in shapes.items()}
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(path)


def files(sdxl: bool = False) -> dict[str, Callable[[], Shapes]]:
    """What to write: paths below the WebUI's data folder, and how to get the shapes."""
    found: dict[str, Callable[[], Shapes]]
    if sdxl:
        found = {
            "Stable-diffusion/ccn-random-sdxl": lambda: checkpoint(SDXL),
            "ControlNet/ccn-random-sdxl-a": lambda: controlnet(SDXL),
            "ControlNet/ccn-random-sdxl-b": lambda: controlnet(SDXL),
            "ControlNet/ccn-random-sdxl-mid-a": lambda: controlnet(SDXL_MID),
            "ControlNet/ccn-random-sdxl-mid-b": lambda: controlnet(SDXL_MID),
        }
    else:
        found = {
            "Stable-diffusion/ccn-random-sd15": lambda: checkpoint(SD15),
            "ControlNet/ccn-random-a": lambda: controlnet(SD15),
            "ControlNet/ccn-random-b": lambda: controlnet(SD15),
            "ControlNet/ccn-random-c": lambda: controlnet(SD15),
            "ControlNet/ccn-random-controllora": lambda: control_lora(SD15),
            "ControlNet/ccn-random-t2iadapter": adapter,
            "Lora/ccn-random-lora": lora,
        }
    return {f"models/{name}.safetensors": shapes for name, shapes in found.items()}


def main() -> None:
    """Reads the command line and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the WebUI's data folder")
    parser.add_argument("--sdxl", action="store_true", help="Stable Diffusion XL, 13 GB")
    arguments = parser.parse_args()
    for name, shapes in files(arguments.sdxl).items():
        print(name)
        write(arguments.folder / name, shapes())


if __name__ == "__main__":
    main()

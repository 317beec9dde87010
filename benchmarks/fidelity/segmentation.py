"""Segmentation models of transformers: the class of every pixel, and ADE20K's colours for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The 150 classes' colours as ADE20K's segmentation maps have them, on which the segmentation
# ControlNets of Stable Diffusion were trained.
_ADE20K = """
787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff0652
8fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0
ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff
8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff
00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ff
ff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc200ff52000aff0070ff3300ff00c2ff007aff
00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ffff001f00b8ff00d6ffff0070
5cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff500
0abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff
b8ff000085ffffd60019c2c266ff005c00ff
"""
UNIVERSAL = ("oneformer", "mask2former", "maskformer")


@lru_cache(maxsize=1)
def palette() -> Tensor:
    """The colours of ADE20K's classes: byte [150, 3]."""
    values = bytes.fromhex("".join(_ADE20K.split()))
    return torch.tensor(list(values), dtype=torch.uint8).unflatten(0, (-1, 3))


def coloured(classes: Tensor) -> Tensor:
    """A map of classes, long [..., H, W], in ADE20K's colours: float [..., 3, H, W] in [0, 1].

    What is no class of ADE20K (255, "not judged") is black.
    """
    colours = torch.cat([palette(), torch.zeros(1, 3, dtype=torch.uint8)])
    known = torch.where((classes >= 0) & (classes < len(palette())), classes, len(palette()))
    return colours[known].movedim(-1, -3).float() / 255


@dataclass(frozen=True)
class Segmenter:
    """A semantic (UperNet, SegFormer, DPT, ...) or universal (OneFormer, Mask2Former) model."""

    processor: Any
    model: Any
    universal: bool = False

    @classmethod
    def load(cls, source: str, device: str, dtype: torch.dtype = torch.float32) -> Segmenter:
        """Load it; raises what transformers raises."""
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForSemanticSegmentation,
            AutoModelForUniversalSegmentation,
            OneFormerProcessor,
        )

        kind = AutoConfig.from_pretrained(source).model_type
        universal = kind in ("oneformer", "mask2former", "maskformer", "detr")
        reader = OneFormerProcessor if kind == "oneformer" else AutoImageProcessor
        network = (
            AutoModelForUniversalSegmentation if universal else AutoModelForSemanticSegmentation
        )
        model = network.from_pretrained(source, dtype=dtype).eval().to(device)
        return cls(reader.from_pretrained(source), model, universal)

    @torch.inference_mode()
    def classes(self, pictures: list[Any]) -> list[Tensor]:
        """The class of each pixel of pictures (PIL, or byte [H, W, 3]): long [H, W] each."""
        sizes = [_size(picture) for picture in pictures]
        task = {"task_inputs": ["semantic"] * len(pictures)} if self._wants_task else {}
        given = self.processor(images=pictures, return_tensors="pt", **task)
        out = self.model(**given.to(self.model.device, self.model.dtype))
        if self.universal:
            found = self.processor.post_process_semantic_segmentation(out, target_sizes=sizes)
            return [classes.cpu().long() for classes in found]
        logits = out.logits.float().cpu()
        return [
            F.interpolate(one[None], size=size, mode="bilinear")[0].argmax(0)
            for one, size in zip(logits, sizes, strict=True)
        ]

    @property
    def _wants_task(self) -> bool:
        return bool(self.model.config.model_type == "oneformer")

    def number(self, label: str) -> int | None:
        """The class that is called so, by one of the words that its name is made of."""
        for number, name in self.model.config.id2label.items():
            if label.lower() in [part.strip().lower() for part in str(name).split(",")]:
                return int(number)
        return None

    @property
    def labels(self) -> list[str]:
        """The names of all classes."""
        return [str(name) for name in self.model.config.id2label.values()]


def _size(picture: Any) -> tuple[int, int]:
    if isinstance(picture, Tensor) or hasattr(picture, "shape"):
        return int(picture.shape[0]), int(picture.shape[1])
    return picture.height, picture.width

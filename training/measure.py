"""Pictures under every row's conditions and method, and what they measure, for `training.gates`.

Every method starts from the same noise, so that a difference between two rows is the methods'.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from demo import metrics
from demo.demo_model import (
    generate,
    native_size,
    with_controlnets,
    with_one_controlnet,
    without_controlnets,
)
from demo.examples import outline_net
from demo.recognise import colours_kept, object_shape, shape_fits
from demo.scenes import SHAPES, Scenes, TwoObjects
from lib_ccn.foreground import resize_mask
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings
from training.gates import Kind


@dataclass(frozen=True)
class Bench:
    """What every row shares: the pipeline, the scenes, the sampling."""

    pipe: Any
    scenes: Scenes | TwoObjects
    steps: int
    guidance_scale: float
    batch: int

    def measure(self, kind: Kind, bar: tqdm) -> tuple[dict[str, float], Tensor]:
        """The row's means over the scenes, and its pictures [B, 3, H, W]."""
        pictures: dict[int, Tensor] = {}
        agreement: list[float] = []
        for numbers in self._batches(kind):
            made, mask = self._make(kind, numbers, bar)
            pictures.update(zip(numbers, made, strict=True))
            if mask is not None:
                truth = resize_mask(self.scenes.object_mask[numbers], mask.shape[-2:])
                agreement += metrics.mask_iou(mask.flatten(1), truth).tolist()
        picture = torch.stack([pictures[n] for n in range(len(pictures))])
        return self.score(picture) | ({"mask": _mean(agreement)} if agreement else {}), picture

    def score(self, picture: Tensor) -> dict[str, float]:
        """Every measure of one picture per scene, averaged."""
        scenes = self.scenes
        found = zip(metrics.regions_present(picture), scenes.named, strict=True)
        measured = {
            "iou": float(metrics.object_iou(picture, scenes.object_mask).mean()),
            "accuracy": float(metrics.region_accuracy(picture, scenes).mean()),
            "regions": _mean([set(named) <= present for present, named in found]),
        }
        if isinstance(scenes, TwoObjects):
            return measured | {"kept": float(colours_kept(picture, scenes).float().mean())}
        colours = zip(metrics.object_colour(picture), scenes.colour, strict=True)
        return measured | {
            "colour": _mean([seen == meant for seen, meant in colours]),
            "shape": min(_by_shape(scenes, _recognised(picture, scenes))),
            "fit": min(_by_shape(scenes, _own_fit(picture, scenes))),
        }

    @torch.inference_mode()
    def through_vae(self) -> Tensor:
        """The scenes' own pictures, encoded and decoded: what sampling cannot surpass."""
        vae = self.pipe.vae
        restored = [
            vae.decode(vae.encode(part.to(vae.device) * 2 - 1).latent_dist.mode()).sample.cpu()
            for part in self.scenes.picture.split(self.batch)
        ]
        return (torch.cat(restored) / 2 + 0.5).clamp(0, 1)

    def _batches(self, kind: Kind) -> list[list[int]]:
        """Scene numbers by batch: of one word each where the method looks for a word."""
        everything = range(len(self.scenes.captions))
        groups: dict[str, list[int]] = {}
        for number in everything:
            word = self.scenes.shape[number] if _reads_word(kind) else ""
            groups.setdefault(word, []).append(number)
        size = self.batch
        return [g[i : i + size] for g in groups.values() for i in range(0, len(g), size)]

    def _net(self, condition: str) -> int:
        """The ControlNet that reads a condition: of several objects' outlines the third."""
        if condition != "outline":
            return 1
        return outline_net(len(self.pipe.controlnet.nets), isinstance(self.scenes, TwoObjects))

    def _make(self, kind: Kind, numbers: list[int], bar: tqdm) -> tuple[Tensor, Tensor | None]:
        conditions = [getattr(self.scenes, name)[numbers] for name in kind.conditions]
        pipe: Any = self.pipe
        if not conditions:
            pipe = without_controlnets(pipe)
        elif len(conditions) == 1:
            pipe = with_one_controlnet(pipe, self._net(kind.conditions[0]))
        else:
            pipe = with_controlnets(pipe, [self._net(name) for name in kind.conditions])
        method: Any = nullcontext()
        if kind.settings is not None:
            settings = Settings.from_dict({"inject": False, **kind.settings})
            if _reads_word(kind):
                settings = settings.replace(foreground_word=self.scenes.shape[numbers[0]])
            method = cross_controlnet(pipe, settings)
        with method as control:
            made = generate(
                pipe,
                [self.scenes.captions[n] for n in numbers],
                numbers,
                conditions[0] if len(conditions) == 1 else conditions or None,
                steps=self.steps,
                guidance_scale=self.guidance_scale,
                size=(native_size(self.pipe),) * 2,
                on_step=bar.update,
            )
        if control is None:
            return made, None
        if control.error is not None:
            raise control.error
        return made, control.session.place.mask


def _reads_word(kind: Kind) -> bool:
    return bool(
        kind.settings and kind.settings.get("inject") and "mask_source" not in kind.settings
    )


def _recognised(picture: Tensor, scenes: Scenes) -> list[float]:
    """1 where the picture's object is recognised as the shape asked for."""
    found = zip(object_shape(picture), scenes.shape, strict=True)
    return [float(seen == meant) for seen, meant in found]


def _own_fit(picture: Tensor, scenes: Scenes) -> list[float]:
    """How well the shape asked for fits the picture's object."""
    fits = shape_fits(metrics.object_mask(picture))
    return [float(row[SHAPES.index(s)]) for row, s in zip(fits, scenes.shape, strict=True)]


def _by_shape(scenes: Scenes, values: list[float]) -> list[float]:
    """The mean of each shape's values."""
    groups: dict[str, list[float]] = {}
    for shape, value in zip(scenes.shape, values, strict=True):
        groups.setdefault(shape, []).append(value)
    return [_mean(group) for group in groups.values()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def differences(pictures: dict[str, Tensor]) -> dict[str, float]:
    """Mean absolute difference of each pair of agreeing rows, in 255ths."""
    names = [name for name in pictures if name.startswith("agreeing")]
    return {
        f"{a} / {b.removeprefix('agreeing: ')}": float((pictures[a] - pictures[b]).abs().mean())
        * 255
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }

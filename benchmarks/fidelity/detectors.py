"""What sees conditions, classes and words in a photograph: public detectors, or one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .segmentation import Segmenter, coloured

POSE, SEG, DEPTH, CANNY, HED = "pose", "seg", "depth", "canny", "hed"
KINDS = (POSE, SEG, DEPTH, CANNY, HED)
ANNOTATORS = "lllyasviel/Annotators"
SEGMENTER = "openmmlab/upernet-convnext-small"
CAPTIONER = "Salesforce/blip2-opt-2.7b"

Picture = Image.Image


class DetectorError(Exception):
    """A detector cannot be had; the message says what to install or to name."""


@dataclass
class Detectors:
    """What a photograph is asked; every picture is RGB and square.

    Attributes:
        classes: the class of every pixel, long [H, W].
        object_class: the number of the object's class among them.
        caption: what is seen, in words.
        conditions: by kind, the condition's image.
    """

    classes: Callable[[Picture], Tensor]
    object_class: int
    caption: Callable[[Picture], str]
    conditions: Mapping[str, Callable[[Picture], Picture]]

    def condition(self, kind: str, picture: Picture, classes: Tensor) -> Picture:
        """A condition of the picture's own size; a segmentation map is made of its classes."""
        if kind == SEG:
            pixels = (coloured(classes) * 255).round().byte().movedim(0, -1)
            return Image.fromarray(pixels.numpy())
        made = self.conditions[kind](picture).convert("RGB")
        return made if made.size == picture.size else made.resize(picture.size)


def public(
    kinds: Sequence[str],
    device: str,
    object_label: str = "person",
    annotators: str = ANNOTATORS,
    segmenter: str = SEGMENTER,
    captioner: str = CAPTIONER,
) -> Detectors:
    """OpenPose, MiDaS, HED and Canny of controlnet_aux, a segmenter and BLIP-2 of transformers.

    Raises:
        DetectorError: a package is missing, a model cannot be loaded, or the segmenter has no
            such class.
    """
    dtype = torch.float32 if device == "cpu" else torch.float16
    try:
        seen = Segmenter.load(segmenter, device, dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DetectorError(f"--segmenter {segmenter} cannot be loaded: {_first(error)}") from error
    number = seen.number(object_label)
    if number is None:
        known = ", ".join(seen.labels[:20])
        raise DetectorError(
            f"--object-label: the segmenter has no class {object_label!r}; it has {known}, ..."
        )
    return Detectors(
        lambda picture: seen.classes([picture])[0],
        number,
        _captioner(captioner, device, dtype),
        {kind: _annotator(kind, annotators, device) for kind in kinds if kind != SEG},
    )


def own(name: str) -> Detectors:
    """What the function `module:function` returns.

    Raises:
        DetectorError: there is no such function, or it returns something else.
    """
    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise DetectorError(f"--detectors {name}: {error}; expected MODULE:FUNCTION") from error
    if not isinstance(made, Detectors):
        raise DetectorError(f"--detectors {name} returned {type(made).__name__}, no Detectors")
    return made


def _annotator(kind: str, source: str, device: str) -> Callable[[Picture], Picture]:
    names = {POSE: "OpenposeDetector", DEPTH: "MidasDetector", HED: "HEDdetector"}
    try:
        import controlnet_aux
    except Exception as error:  # whatever its many detectors' own packages raise
        raise DetectorError(
            f"{kind} needs the package controlnet_aux: pip install controlnet_aux ({_first(error)})"
        ) from error
    if kind == CANNY:
        detector = controlnet_aux.CannyDetector()
    else:
        try:
            detector = getattr(controlnet_aux, names[kind]).from_pretrained(source).to(device)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise DetectorError(
                f"--annotators {source} has no model for {kind}: {_first(error)}"
            ) from error

    def see(picture: Picture) -> Picture:
        side = min(picture.size)  # of what it works on and of what it returns
        return detector(picture, detect_resolution=side, image_resolution=side, output_type="pil")

    return see


def _captioner(source: str, device: str, dtype: torch.dtype) -> Callable[[Picture], str]:
    try:
        from transformers import AutoProcessor, Blip2ForConditionalGeneration

        processor = AutoProcessor.from_pretrained(source)
        model: Any = Blip2ForConditionalGeneration.from_pretrained(source, dtype=dtype)
        model = model.eval().to(device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DetectorError(f"--captioner {source} cannot be loaded: {_first(error)}") from error

    @torch.inference_mode()
    def describe(picture: Picture) -> str:
        given = processor(images=picture, return_tensors="pt").to(device, dtype)
        found = model.generate(**given, max_new_tokens=30)
        return str(processor.batch_decode(found, skip_special_tokens=True)[0]).strip()

    return describe


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

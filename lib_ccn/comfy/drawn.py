"""A report as pictures: tensors [B, H, W, C] in [0, 1], as ComfyUI has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..hosts.guard import told
from ..webui.pictures import Result, decision_image
from .plan import Report

log = logging.getLogger(__name__)

_UNKNOWN = (40, 40, 40)


@dataclass(frozen=True)
class Drawn:
    """What is shown of a sampling.

    Attributes:
        strips: [B, h, w, 3], each picture with its mask and who won where.
        masks: [layers * B, H, W], front to back, zeros where no mask is known.
        winners: [B, H, W, 3], dark where nothing is known.
        summary: in words.
    """

    strips: Tensor
    masks: Tensor
    winners: Tensor
    summary: str

    @classmethod
    def of(cls, report: Report, images: Tensor) -> Drawn:
        """Draw it beside the pictures [B, H, W, C] that were sampled.

        Where that fails, the pictures are all there is: they are not to be lost for a report.
        """
        try:
            return cls._of(report, images)
        except Exception as error:
            log.warning("Cross-ControlNet cannot draw its report\n%s", told(error))
            nothing = torch.zeros(images.shape[:3])
            text = f"the report could not be drawn ({type(error).__name__}: {error})"
            return cls(images, nothing, nothing[..., None].expand(-1, -1, -1, 3), text)

    @classmethod
    def _of(cls, report: Report, images: Tensor) -> Drawn:
        record = report.shown()
        result = Result() if record is None else record.result
        pictures = [_picture(image) for image in images]
        size = (int(images.shape[1]), int(images.shape[2]))
        count = len(pictures)
        if not result.pictures and report.notes:
            result.said = [f"{note}." for note in report.notes]
        return cls(
            _batch([result.strip(picture, n) for n, picture in enumerate(pictures)]),
            _masks([] if record is None else record.masks, count, size),
            _batch([_winners(result, n, size) for n in range(count)]),
            report.account().line(),
        )


def _picture(image: Tensor) -> Image.Image:
    values = image[..., :3].detach().cpu().float().nan_to_num(0.0).clamp(0, 1).mul(255).round()
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def _masks(places: Sequence[Tensor | None], count: int, size: tuple[int, int]) -> Tensor:
    found = []
    for place in places or [None]:
        known = 0 if place is None else min(count, len(place))
        masks = torch.zeros(count, *size)
        if place is not None and known:
            coarse = place[:known, None].float().cpu()
            masks[:known] = functional.interpolate(coarse, size, mode="nearest")[:, 0]
        found.append(masks)
    return torch.cat(found)


def _winners(result: Result, number: int, size: tuple[int, int]) -> Image.Image:
    decision = result.decisions[number] if number < len(result.decisions) else None
    wide = (size[1], size[0])
    if decision is None:
        return Image.new("RGB", wide, _UNKNOWN)
    return decision_image(decision.maps[0]).resize(wide, Image.Resampling.NEAREST)


def _batch(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as one tensor; smaller ones on white."""
    wide = max(picture.width for picture in pictures)
    high = max(picture.height for picture in pictures)
    sheets = []
    for picture in pictures:
        sheet = Image.new("RGB", (wide, high), (255, 255, 255))
        sheet.paste(picture)
        sheets.append(torch.from_numpy(np.array(sheet)).float() / 255)
    return torch.stack(sheets)

"""Measures of real pictures, each by a well-kept library and each optional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.metrics import mask_iou, ssim

from .segmentation import Segmenter, coloured

IGNORED = 255
SEGMENTATION, DEPTH = "seg", "depth"  # kinds of background conditions that have a measure


class ScorerError(Exception):
    """A measure cannot be had; the message says what is missing."""


@dataclass
class Scorers:
    """The measures that were asked for; None where one was not.

    Attributes:
        clip: model and tokenizer, for the CLIP-score.
        segmenter: for IoU, region accuracy, and the MSE to a segmentation map.
        object_class: the segmenter's number of the object's class.
        depth: image processor and model, for the MSE to a depth condition.
        niqe: a metric of pyiqa.
    """

    device: str = "cpu"
    clip: tuple[Any, Any] | None = None
    segmenter: Segmenter | None = None
    object_class: int = -1
    depth: tuple[Any, Any] | None = None
    niqe: Any = None

    @classmethod
    def load(
        cls,
        clip: str | None,
        segmenter: str | None,
        object_label: str,
        depth: str | None,
        niqe: bool,
        device: str,
    ) -> Scorers:
        """Load what is named, in half precision where there is a GPU.

        Raises:
            ScorerError: a model or a library cannot be had, or the segmenter lacks the class.
        """
        found = cls(device)
        dtype = torch.float32 if device == "cpu" else torch.float16
        if clip is not None:
            from transformers import AutoTokenizer, CLIPModel

            with _naming(clip):
                model = CLIPModel.from_pretrained(clip, dtype=dtype).eval().to(device)
                found.clip = model, AutoTokenizer.from_pretrained(clip)
        if segmenter is not None:
            with _naming(segmenter):
                found.segmenter = Segmenter.load(segmenter, device, dtype)
            number = found.segmenter.number(object_label)
            if number is None:
                known = ", ".join(found.segmenter.labels[:20])
                raise ScorerError(
                    f"--object-label: the segmenter has no class {object_label!r}; it has "
                    f"{known}, ..."
                )
            found.object_class = number
        if depth is not None:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation

            with _naming(depth):
                network = AutoModelForDepthEstimation.from_pretrained(depth, dtype=dtype)
                found.depth = AutoImageProcessor.from_pretrained(depth), network.eval().to(device)
        if niqe:
            try:
                import pyiqa
            except ImportError as error:
                raise ScorerError(f"--niqe needs the package pyiqa ({error})") from error
            found.niqe = pyiqa.create_metric("niqe", device=device)
        return found

    @torch.inference_mode()
    def score(
        self,
        pictures: Tensor,
        *,
        prompts: Sequence[str],
        background: Tensor,
        kinds: Sequence[str],
        object_masks: Sequence[Tensor | None],
        labels: Sequence[Tensor | None],
        references: Sequence[Tensor | None],
    ) -> list[dict[str, float]]:
        """Measures of pictures [B, 3, H, W] in [0, 1]; what is None is not measured.

        Args:
            pictures: what was made.
            prompts: what was asked for.
            background: the background's conditions, [B, 3, H, W] in [0, 1].
            kinds: of each background condition: "seg", "depth", ...; "" is unknown.
            object_masks: where each object should be, bool [H, W].
            labels: the class of each pixel, long [H, W].
            references: the picture that the conditions were taken from, [3, H, W].
        """
        columns: dict[str, list[float | None]] = {}
        if self.clip is not None:
            columns["clip"] = [*self._clip_scores(pictures, prompts).tolist()]
        if self.segmenter is not None:
            columns |= self._by_class(pictures, background, kinds, object_masks, labels)
        if self.depth is not None:
            errors = self._depth_errors(pictures, background)
            columns["depth"] = [
                float(error) if kind in ("", DEPTH) else None
                for error, kind in zip(errors, kinds, strict=True)
            ]
        if self.niqe is not None:
            columns["niqe"] = [*self.niqe(pictures.to(self.device)).flatten().tolist()]
        columns["ssim"] = [
            None if reference is None else float(ssim(picture[None], reference[None]))
            for picture, reference in zip(pictures, references, strict=True)
        ]
        return [
            {name: value for name, column in columns.items() if (value := column[n]) is not None}
            for n in range(len(pictures))
        ]

    def _clip_scores(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of CLIP's embeddings of picture and prompt, as in the paper's tables: [B]."""
        assert self.clip is not None
        model, tokenizer = self.clip
        side = model.config.vision_config.image_size
        pixels = F.interpolate(pictures, size=(side, side), mode="bicubic", antialias=True)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
        deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
        given = tokenizer([*prompts], padding=True, truncation=True, return_tensors="pt")
        given = given.to(self.device)
        out = model(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            pixel_values=((pixels - mean) / deviation).to(self.device, model.dtype),
        )
        return F.cosine_similarity(out.image_embeds.float(), out.text_embeds.float()).cpu()

    def _by_class(
        self,
        pictures: Tensor,
        background: Tensor,
        kinds: Sequence[str],
        object_masks: Sequence[Tensor | None],
        labels: Sequence[Tensor | None],
    ) -> dict[str, list[float | None]]:
        assert self.segmenter is not None
        wanted = [
            kind == SEGMENTATION or mask is not None or label is not None
            for kind, mask, label in zip(kinds, object_masks, labels, strict=True)
        ]
        if not any(wanted):
            return {}
        columns: dict[str, list[float | None]] = {"iou": [], "regions": [], "seg": []}
        seen = self.segmenter.classes([_bytes(picture) for picture in pictures])
        for n, classes in enumerate(seen):
            mask, label = object_masks[n], labels[n]
            iou = right = error = None
            if mask is not None:
                iou = float(mask_iou(classes[None] == self.object_class, mask[None]))
            if label is not None:
                judged = label != IGNORED if mask is None else (label != IGNORED) & ~mask
                right = float(((classes == label) & judged).sum() / judged.sum().clamp_min(1))
            if kinds[n] == SEGMENTATION:
                error = float((coloured(classes) - background[n]).square().mean())
            for name, value in (("iou", iou), ("regions", right), ("seg", error)):
                columns[name].append(value)
        return columns

    def _depth_errors(self, pictures: Tensor, conditions: Tensor) -> Tensor:
        """MSE of each picture's depth to its condition's, both scaled to [0, 1]: [B]."""
        assert self.depth is not None
        processor, model = self.depth
        given = processor(images=[_bytes(picture) for picture in pictures], return_tensors="pt")
        out = model(**given.to(self.device, model.dtype)).predicted_depth.float().cpu()
        found = F.interpolate(out[:, None], size=pictures.shape[-2:], mode="bilinear")[:, 0]
        return (_scaled(found) - _scaled(conditions.mean(1))).square().flatten(1).mean(1)


def _bytes(picture: Tensor) -> Any:
    """A picture [3, H, W] in [0, 1] as NumPy's bytes [H, W, 3]."""
    return (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()


def _scaled(values: Tensor) -> Tensor:
    """Maps [B, H, W], each from its own least to its own largest value."""
    low, high = (edge(values.flatten(1), 1)[..., None, None] for edge in (torch.amin, torch.amax))
    return (values - low) / (high - low).clamp_min(1e-12)


class _naming:  # noqa: N801 - reads as a function
    """Turns what a library raises while it loads a model into a ScorerError that names it."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError | ValueError | KeyError | ImportError):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ScorerError(f"{self.source} cannot be loaded: {first}") from error

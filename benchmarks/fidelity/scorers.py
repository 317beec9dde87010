"""Measures of real pictures, each by a well-kept library and each optional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.metrics import mask_iou, ssim

IGNORED = 255


class ScorerError(Exception):
    """A measure cannot be had; the message says what is missing."""


@dataclass
class Scorers:
    """The measures that were asked for; None where one was not.

    Attributes:
        clip: model and tokenizer, for the CLIP-score.
        segmenter: image processor and model, for IoU and region accuracy.
        object_class: the segmenter's number of the object's class.
        depth: image processor and model, for the MSE to a depth condition.
        niqe: a metric of pyiqa.
    """

    device: str = "cpu"
    clip: tuple[Any, Any] | None = None
    segmenter: tuple[Any, Any] | None = None
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
        """Load what is named.

        Raises:
            ScorerError: a model or a library cannot be had, or the segmenter lacks the class.
        """
        found = cls(device)
        if clip is not None:
            from transformers import AutoTokenizer, CLIPModel

            found.clip = _loaded(CLIPModel, clip, device), _loaded(AutoTokenizer, clip)
        if segmenter is not None:
            from transformers import AutoModelForSemanticSegmentation as Segmenter

            found.segmenter = _processor(segmenter), _loaded(Segmenter, segmenter, device)
            found.object_class = _class_number(found.segmenter[1].config, object_label)
        if depth is not None:
            from transformers import AutoModelForDepthEstimation as Depth

            found.depth = _processor(depth), _loaded(Depth, depth, device)
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
        picture: Tensor,
        *,
        prompt: str,
        background: Tensor,
        object_mask: Tensor | None,
        labels: Tensor | None,
        reference: Tensor | None,
    ) -> dict[str, float]:
        """Measures of one picture [3, H, W] in [0, 1]; what is None is not measured."""
        row: dict[str, float] = {}
        if self.clip is not None:
            row["clip"] = self._clip_score(picture, prompt)
        if self.segmenter is not None and (object_mask is not None or labels is not None):
            seen = self._classes(picture)
            if object_mask is not None:
                row["iou"] = float(mask_iou(seen[None] == self.object_class, object_mask[None]))
            if labels is not None:
                judged = labels != IGNORED
                if object_mask is not None:
                    judged &= ~object_mask
                right = ((seen == labels) & judged).sum() / judged.sum().clamp_min(1)
                row["regions"] = float(right)
        if self.depth is not None:
            row["depth"] = self._depth_error(picture, background)
        if self.niqe is not None:
            row["niqe"] = float(self.niqe(picture[None].to(self.device)))
        if reference is not None:
            row["ssim"] = float(ssim(picture[None], reference[None]))
        return row

    def _clip_score(self, picture: Tensor, prompt: str) -> float:
        """Cosine of CLIP's embeddings of picture and prompt, as in the paper's tables."""
        assert self.clip is not None
        model, tokenizer = self.clip
        side = model.config.vision_config.image_size
        pixels = F.interpolate(picture[None], size=(side, side), mode="bicubic", antialias=True)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
        deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
        given = tokenizer([prompt], truncation=True, return_tensors="pt").to(self.device)
        out = model(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            pixel_values=((pixels - mean) / deviation).to(self.device),
        )
        return float(F.cosine_similarity(out.image_embeds, out.text_embeds))

    def _classes(self, picture: Tensor) -> Tensor:
        """The segmenter's class of each pixel: long [H, W]."""
        assert self.segmenter is not None
        processor, model = self.segmenter
        logits = model(**self._inputs(processor, picture)).logits.float().cpu()
        return F.interpolate(logits, size=picture.shape[-2:], mode="bilinear")[0].argmax(0)

    def _depth_error(self, picture: Tensor, condition: Tensor) -> float:
        """MSE of the picture's depth to the condition's, both scaled to [0, 1]."""
        assert self.depth is not None
        processor, model = self.depth
        found = model(**self._inputs(processor, picture)).predicted_depth.float().cpu()
        found = F.interpolate(found[:, None], size=picture.shape[-2:], mode="bilinear")[0, 0]
        return float((_scaled(found) - _scaled(condition.mean(0))).square().mean())

    def _inputs(self, processor: Any, picture: Tensor) -> Any:
        pixels = (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
        return processor(images=pixels, return_tensors="pt").to(self.device)


def _scaled(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(1e-12)


def _loaded(kind: Any, source: str, device: str | None = None) -> Any:
    try:
        model = kind.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ScorerError(f"{source} cannot be loaded: {first}") from error
    return model if device is None else model.eval().to(device)


def _processor(source: str) -> Any:
    from transformers import AutoImageProcessor

    return _loaded(AutoImageProcessor, source)


def _class_number(config: Any, label: str) -> int:
    for number, name in config.id2label.items():
        if label.lower() in [part.strip().lower() for part in str(name).split(",")]:
            return int(number)
    known = ", ".join(str(name) for name in list(config.id2label.values())[:20])
    raise ScorerError(f"--object-label: the segmenter has no class {label!r}; it has {known}, ...")

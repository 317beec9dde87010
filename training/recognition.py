"""An auxiliary loss for the outline unit: its features say which shape an outline is.

An outline shows a shape and no colour, and only who knows the shape can tell which of two nouns of
the caption it belongs to. The denoising loss teaches that too slowly for a model of this size. The
heads are for training alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from demo.world import SHAPES
from training.data import object_masks

SHOWN = 0.9  # of an outline's pixels are in a condition that shows it


class ShapeHeads(nn.Module):
    """One for the features in front of each spatial transformer of a ControlNet."""

    def __init__(self, controlnet: nn.Module) -> None:
        super().__init__()
        found = [m for m in controlnet.modules() if isinstance(m, Transformer2DModel)]
        self.heads = nn.ModuleList(
            nn.Conv2d(m.norm.num_channels, len(SHAPES), kernel_size=1) for m in found
        )
        self.features: list[Tensor] = []
        for module in found:
            module.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.features.append(args[0] if args else kwargs["hidden_states"])

    def loss(self, batch: dict[str, Tensor], condition: Tensor) -> Tensor:
        """Mean cross-entropy of the shape over the pixels of objects whose outline is shown: [B].

        Args:
            batch: "first", "second", "objects", "shapes" as `draw_batch` makes them.
            condition: [B, 3, H, W], what the ControlNet was shown in its last call.
        """
        features, self.features = self.features, []
        lines = (torch.stack([batch["first"], batch["second"]], 1) > 127).float()
        found = lines * (condition[:, :1] > 0.4)
        seen = found.sum((2, 3)) / lines.sum((2, 3)).clamp_min(1)
        masks = object_masks(batch) * (seen > SHOWN)[:, :, None, None]
        total = torch.zeros(len(condition), device=condition.device)
        for head, feature in zip(self.heads, features, strict=True):
            wrong = -F.log_softmax(head(feature.float()), 1)
            share = F.adaptive_avg_pool2d(masks, feature.shape[-1])
            for n in (0, 1):
                chosen = batch["shapes"][:, n, None, None, None].expand(-1, 1, *wrong.shape[-2:])
                own = wrong.gather(1, chosen)[:, 0] * share[:, n]
                total = total + own.flatten(1).sum(1) / share.flatten(1).sum(1).clamp_min(1e-6)
        return total / len(features)

"""A token-level grounding loss: a word's cross-attention looks at its own object, only there.

After TokenCompose (Wang et al., CVPR 2024), which so taught Stable Diffusion to hold several
objects apart. Large models' nouns find their objects by themselves; one as small as the demo's has
to be told.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn


class CrossAttentionMaps:
    """Keeps what networks' cross-attention looks at while they run.

    Args:
        networks: their cross-attention becomes diffusers' plain one, which has the probabilities.

    Attributes:
        maps: by layer, [B, pixels, tokens], the mean over the heads; `take` empties it.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self.maps: list[Tensor] = []
        named = [pair for network in networks for pair in network.named_modules()]
        for path, module in named:
            if path.endswith("attn2"):
                module.set_processor(AttnProcessor())
                module.get_attention_scores = self._keeping(module, module.get_attention_scores)

    def take(self) -> list[Tensor]:
        """The maps of the last call."""
        taken, self.maps = self.maps, []
        return taken

    def _keeping(self, module: Any, scores: Any) -> Any:
        def kept(*arguments: Any, **named: Any) -> Tensor:
            found = scores(*arguments, **named)
            self.maps.append(found.unflatten(0, (-1, module.heads)).float().mean(1))
            return found

        return kept


def word_places(tokens: Tensor, nouns: Tensor) -> Tensor:
    """Where each object's noun stands in a caption.

    Args:
        tokens: long [B, 77].
        nouns: long [B, objects], their tokens.

    Returns:
        long [B, objects], -1 where the caption does not name it.
    """
    same = tokens[:, None, :] == nouns[:, :, None]
    return torch.where(same.any(-1), same.int().argmax(-1), -1)


def grounding_loss(maps: list[Tensor], places: Tensor, masks: Tensor) -> Tensor:
    """How far nouns look beside their objects, and how unevenly at them.

    Nouns alone: CLIP reads from left to right, so that a colour does not know whose it is.

    For a word's map a over pixels u, the object's share m of each, and the mean of a inside,
    mu = sum(a m) / sum(m): TokenCompose's (1 - sum(a m) / sum(a))^2 plus the mean over u of the
    smooth L1 distance of a / mu from m, which is TokenCompose's pixel term free of a's scale.

    Args:
        maps: by layer, [B, pixels, tokens].
        places: long [B, objects], the nouns' positions; -1 where there is nothing to learn.
        masks: float [B, objects, H, W], the objects.

    Returns:
        [B], the mean over layers and objects; 0 where there is no object.
    """
    total = torch.zeros(len(places), device=places.device)
    there = (places > 0) & (masks.flatten(2).amax(2) > 0)
    count = (len(maps) * there.sum(1)).clamp_min(1)
    nouns = places.clamp_min(0)
    for layer in maps:
        side = round(layer.shape[1] ** 0.5)
        share = F.adaptive_avg_pool2d(masks, side).flatten(2)
        seen = layer.gather(2, nouns[:, None, :].expand(-1, layer.shape[1], -1)).movedim(2, 1)
        inside = (seen * share).sum(2)
        mean = inside / share.sum(2).clamp_min(1e-6)
        beside = (1 - inside / seen.sum(2).clamp_min(1e-12)).square()
        ratio = seen / mean.clamp_min(1e-12)[:, :, None]
        uneven = F.smooth_l1_loss(ratio, share, reduction="none").mean(2)
        total = total + torch.where(there, beside + uneven, 0).sum(1)
    return total / count

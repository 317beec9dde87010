"""What the unit for several outlines learns beside denoising: whose each outline is, and quietly.

An outline shows a shape and no colour. To keep two objects apart a unit has to recognise the shape
and to find its word in the caption; the denoising loss teaches that too slowly for a model of this
size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.data import object_masks
from training.grounding import CrossAttentionMaps, grounding_loss, word_places
from training.loop import Schedule
from training.recognition import ShapeHeads

# Weights beside the denoising loss, which is about 0.02.
GROUNDING = 0.05
RECOGNITION = 0.02
# Of the mean square of the residuals: taught by the other two alone the unit would say all it can
# as loudly as it can, in the middle above all, where ChannelFusion hears who is loudest.
LOUDNESS = 1e-3
# Of the times so many are of the noisiest third: there an outline alone says which word is where,
# and there colours settle.
NOISIEST = 0.60
# There the denoising loss hardly counts, and who learns from the lessons alone no longer leaves the
# landscape be: it counts so much at least.
LEAST_WEIGHT = 0.10
# Between these shares of the steps the lessons and the preference for noisy times fade: what was
# learned stays, and the unit ends as precise as one that only denoised.
FADING = (0.4, 0.7)


class Lessons(nn.Module):
    """Losses of a ControlNet for outlines, with the heads that one of them needs.

    Args:
        unet: whose words are to look at their own objects, by what the ControlNet tells it.
        controlnet: learns; its own words are to look there too.

    Attributes:
        left: how much the lessons count, a scalar from 1 down to 0; a captured step reads it anew.
    """

    left: Tensor

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.maps = CrossAttentionMaps(unet, controlnet)
        self.heads = ShapeHeads(controlnet)
        self.register_buffer("left", torch.ones(()))
        self.shown = torch.empty(0)
        self.residuals: list[Tensor] = []

    @property
    def noisiest(self) -> Tensor:
        """How many of the times are of the noisiest third beyond those that are anyway."""
        return NOISIEST * self.left

    def before(self, schedule: Schedule, between: Callable[[int], None]) -> Callable[[int], None]:
        """What is done before a step: what of the lessons is left is set, then `between`."""

        def fade(step: int) -> None:
            self.fade(step / schedule.steps)  # whose number may be known only later
            between(step)

        return fade

    def fade(self, done: float) -> None:
        """So much of the training is done, of 1."""
        begin, end = FADING
        self.left.fill_(1 - min(max((done - begin) / (end - begin), 0.0), 1.0))

    def hear(self, shown: Tensor, residuals: list[Tensor]) -> None:
        """The ControlNet was shown this [B, 3, H, W], and has answered."""
        self.shown, self.residuals = shown, residuals

    def losses(self, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """What is to be learned from the last call, of each scene: [B].

        Args:
            batch: scenes as `draw_batch` makes them.
            tokens: long [B, 77], of the captions, or of the empty one.
        """
        places = word_places(tokens, batch["nouns"])
        beside = grounding_loss(self.maps.take(), places, object_masks(batch))
        unseen = self.heads.loss(batch, self.shown)
        loud = loudness(self.residuals)
        self.residuals = []
        return self.left * (GROUNDING * beside + RECOGNITION * unseen) + LOUDNESS * loud


def loudness(residuals: list[Tensor]) -> Tensor:
    """The mean square of residuals [B, C, H, W], each counting as much as another: [B]."""
    return torch.stack([r.float().square().mean((1, 2, 3)) for r in residuals]).mean(0)

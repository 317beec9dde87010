"""Scenes for training, drawn on the fly into a pool that is renewed while it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demo.scenes import draw

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

CHUNK = 64


def draw_conditions(count: int, generator: torch.Generator) -> dict[str, Tensor | list[str]]:
    """Pictures, conditions (uint8) and captions of `count` new scenes."""
    scenes = draw(count, generator)
    return {
        "picture": scenes.picture,
        "outline": (scenes.outline * 255).round().byte(),
        "regions": (scenes.region_map * 255).round().byte(),
        "captions": scenes.captions,
    }


class ScenePool:
    """Latents, caption tokens and conditions of `size` scenes, some replaced at every batch.

    Args:
        size: scenes kept, a multiple of 64.
        renew: how many scenes every batch replaces.
        vae: encodes the pictures; the pool keeps scaled latents [4, 32, 32].
        tokenizer: makes the caption tokens [77].
        seed: of the scenes, and of the choice among them.
    """

    def __init__(
        self, size: int, renew: int, vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int
    ) -> None:
        self.vae, self.tokenizer, self.renew = vae, tokenizer, renew
        self.generator = torch.Generator().manual_seed(seed)
        self.oldest = 0
        chunks = [self._new(CHUNK) for _ in range(size // CHUNK)]
        self.data = {key: torch.cat([c[key] for c in chunks]) for key in chunks[0]}
        self.size = len(self.data["latent"])

    @torch.no_grad()
    def _new(self, count: int) -> dict[str, Tensor]:
        drawn = draw_conditions(count, self.generator)
        picture = drawn.pop("picture")
        device = self.vae.device
        latent = self.vae.encode(picture.to(device) * 2 - 1).latent_dist.mode()
        drawn["latent"] = (latent * self.vae.config.scaling_factor).cpu()
        drawn["tokens"] = tokenize(self.tokenizer, drawn.pop("captions"))
        return drawn

    def batch(self, count: int) -> dict[str, Tensor]:
        """`count` scenes, drawn with replacement, after some of the oldest were replaced."""
        if self.renew:
            fresh = self._new(self.renew)
            at = (torch.arange(self.renew) + self.oldest) % self.size
            self.oldest = (self.oldest + self.renew) % self.size
            for key, value in fresh.items():
                self.data[key][at] = value
        chosen = torch.randint(self.size, (count,), generator=self.generator)
        return {key: value[chosen] for key, value in self.data.items()}


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [len(captions), 77], padded as the pipelines pad them."""
    return tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids

"""Scenes for training, drawn on the device into a pool that is renewed while it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demo.drawing import (
    coverage,
    draw_land,
    draw_layouts,
    edge,
    integers,
    object_distance,
    paint_land,
    region_indices,
    uniform,
)
from demo.scenes import chosen, paint_over, place_one, place_over, place_two
from demo.world import COLOURS, MAP_COLOURS, REGION_NAMES, SHAPES, SIZE
from training.captions import LENGTH, CaptionTokens

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

OBJECT_FREE = 0.12
TWO_OBJECTS = 0.30


@dataclass(frozen=True)
class Mix:
    """Shares of the scenes drawn.

    Attributes:
        object_free: have no object.
        two: of the rest, have two.
        overlapping: of these, have one in front of the other; the caption does not tell which.
        stranger: of the object-free, have a caption that names objects all the same, two of them
            as often as it does where they are there.
    """

    object_free: float = OBJECT_FREE
    two: float = TWO_OBJECTS
    overlapping: float = 0.0
    stranger: float = 0.0


def draw_batch(
    count: int, generator: torch.Generator, captions: CaptionTokens | None, mix: Mix
) -> dict[str, Tensor]:
    """`count` new scenes on the generator's device.

    Returns:
        `picture` [B, 3, 64, 64] in [0, 1]; `first` and `second` uint8 [B, 64, 64], the outlines
        of the objects, black without; `objects` uint8 [B, 64, 64], whose a pixel is, 1 or 2, 0 the
        landscape's; `regions` uint8 [B, 64, 64], indices into `MAP_COLOURS`, the objects being the
        last; with `captions`, `tokens` long [B, 77] and `nouns` and `shapes` long [B, 2], of
        what is drawn.
    """
    land = draw_land(draw_layouts(count, generator), generator)
    kinds = [integers(generator, len(k), count) for k in (SHAPES, COLOURS)]
    one = place_one(kinds[0], kinds[1], generator)
    side_by_side, over = place_two(count, generator), place_over(count, generator)
    has_object = uniform(generator, 0, 1, count) >= mix.object_free
    paired = uniform(generator, 0, 1, count) < mix.two
    overlaps = paired & (uniform(generator, 0, 1, count) < mix.overlapping)
    two = has_object & paired
    drawn = [chosen(overlaps, a, b) for a, b in zip(over, side_by_side, strict=True)]
    drawn[0] = chosen(paired, drawn[0], one)
    regions = region_indices(land)
    picture, index, lines = paint_land(land, regions), regions, []
    objects = torch.zeros_like(regions)
    for number, (things, there) in enumerate(zip(drawn, (has_object, two), strict=True), 1):
        distance = object_distance(things.shapes, things.radius, things.centre, things.turn)
        covered = coverage(distance) * there[:, None, None]
        picture = paint_over(picture, things, distance, covered)
        index = torch.where(covered > 0.5, len(REGION_NAMES), index)
        objects = torch.where(covered > 0.5, number, objects)
        lines.append((edge(distance) * there[:, None, None] * 255).round().byte())
    batch = {
        "picture": picture.clamp(0, 1),
        "first": lines[0],
        "second": lines[1],
        "objects": objects.byte(),
        "regions": index.byte(),
    }
    if captions is not None:
        stranger = uniform(generator, 0, 1, count) < mix.stranger
        named = torch.stack([has_object | stranger, (has_object | stranger) & paired])
        dice = uniform(generator, 0, 1, count, 3)
        turned = overlaps & (uniform(generator, 0, 1, count) < 0.5)
        told = chosen(turned, drawn[1], drawn[0]), chosen(turned, drawn[0], drawn[1])
        batch["tokens"] = captions.write(told, named, land.layout, dice)
        batch["shapes"] = torch.stack([things.shapes for things in drawn], 1)
        batch["nouns"] = torch.cat([captions.shapes[things.shapes] for things in drawn], 1)
    return batch


class ScenePool:
    """Latents, caption tokens and conditions of `size` scenes; `renew` replaces the oldest.

    Args:
        size: scenes kept, a multiple of `chunk`.
        chunk: scenes drawn at a time.
        vae: encodes the pictures; the pool keeps scaled latents [4, 32, 32].
        tokenizer: makes the caption tokens [77].
        seed: of the scenes.
        mix: which scenes.
    """

    def __init__(
        self,
        size: int,
        chunk: int,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        seed: int,
        mix: Mix,
    ) -> None:
        self.vae, self.chunk, self.mix = vae, chunk, mix
        self.device = vae.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.captions = CaptionTokens(tokenizer, self.device)
        self.oldest, self.size = 0, size
        first = self._new()
        self.data = {key: value.new_empty((size, *value.shape[1:])) for key, value in first.items()}
        for _ in range(0, size, chunk):
            self._put(first)
            first = self._new()

    def renew(self) -> None:
        """Replace the oldest `chunk` scenes by new ones, in place."""
        self._put(self._new())

    def batch(self, count: int) -> dict[str, Tensor]:
        """`count` scenes, drawn with replacement by the device's default generator."""
        chosen = torch.randint(self.size, (count,), device=self.device)
        return {key: value[chosen] for key, value in self.data.items()}

    def _put(self, scenes: dict[str, Tensor]) -> None:
        for key, value in scenes.items():
            self.data[key][self.oldest : self.oldest + self.chunk] = value
        self.oldest = (self.oldest + self.chunk) % self.size

    @torch.no_grad()
    def _new(self) -> dict[str, Tensor]:
        drawn = draw_batch(self.chunk, self.generator, self.captions, self.mix)
        latent = self.vae.encode(drawn.pop("picture") * 2 - 1).latent_dist.mode()
        drawn["latent"] = latent * self.vae.config.scaling_factor
        return drawn


class PicturePool:
    """Quarters of pictures [3, 32, 32] for the autoencoder, which is convolutional.

    Args:
        size: kept, a multiple of `chunk`.
        chunk: drawn at a time.
        device: where they are drawn and kept.
        seed: of the scenes and of where they are cut.
    """

    def __init__(self, size: int, chunk: int, device: str, seed: int) -> None:
        self.chunk, self.device, self.size, self.oldest = chunk, device, size, 0
        self.generator = torch.Generator(device).manual_seed(seed)
        self.cut = torch.Generator().manual_seed(seed)
        self.data = torch.empty(size, 3, SIZE // 2, SIZE // 2, device=device)
        for _ in range(0, size, chunk):
            self.renew()

    def renew(self) -> None:
        """Replace the oldest `chunk` of them, in place."""
        left, top = torch.randint(SIZE // 2, (2,), generator=self.cut).tolist()
        part = self.whole(self.chunk)[..., top : top + SIZE // 2, left : left + SIZE // 2]
        self.data[self.oldest : self.oldest + self.chunk] = part
        self.oldest = (self.oldest + self.chunk) % self.size

    def whole(self, count: int) -> Tensor:
        """New pictures [count, 3, 64, 64]."""
        return draw_batch(count, self.generator, None, Mix())["picture"]

    def batch(self, count: int) -> Tensor:
        """`count` quarters, drawn with replacement by the device's default generator."""
        return self.data[torch.randint(self.size, (count,), device=self.device)]


def object_masks(batch: dict[str, Tensor]) -> Tensor:
    """Where each of two objects is seen: float [B, 2, 64, 64]."""
    return torch.stack([batch["objects"] == number for number in (1, 2)], 1).float()


def outline_condition(batch: dict[str, Tensor]) -> Tensor:
    """White on black [B, 3, 64, 64]: every object's outline, or of two objects only one's."""
    dice = torch.rand(len(batch["first"]), 1, 1, device=batch["first"].device)
    both = torch.maximum(batch["first"], batch["second"])
    single = batch["second"].flatten(1).amax(1)[:, None, None] == 0
    line = torch.where(dice < 0.25, batch["first"], batch["second"])
    line = torch.where(single | (dice >= 0.5), both, line)
    return (line.float() / 255)[:, None].expand(-1, 3, -1, -1)


def regions_condition(batch: dict[str, Tensor], palette: Tensor) -> Tensor:
    """The region map [B, 3, 64, 64]; `palette` is `MAP_COLOURS` on the batch's device."""
    return palette[batch["regions"].long()].movedim(-1, 1)


def map_palette(device: str | torch.device) -> Tensor:
    """`MAP_COLOURS` [6, 3] as 8-bit pictures hold them."""
    return ((MAP_COLOURS * 255).round() / 255).to(device)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [len(captions), 77], padded as the pipelines pad them."""
    return tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids

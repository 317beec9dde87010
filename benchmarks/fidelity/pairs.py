"""Condition pairs in batches, and those of the drawn world."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from demo import metrics
from demo.recognise import in_front, own_ious
from demo.scenes import Scenes, TwoObjects, draw, draw_overlapping, draw_two

from .naturalness import Naturalness

CONFLICT, COMPLEMENTARY = "conflict", "complementary"
TWO, OVERLAPPING = "two objects", "one in front of another"
SEVERAL = (TWO, OVERLAPPING)  # units in front
CASES = (CONFLICT, COMPLEMENTARY, *SEVERAL)
# Pairs are drawn and batched by so many: the first ones are the same however many are asked for.
CHUNK = 80
# Far from the trainer's scenes (0, 7919, ...), the gates' and the mask study's.
SCENE_SEED = 20_260_500
TWO_SEED, OVERLAPPING_SEED = 20_264_000, 20_266_000
HIDDEN_PIXELS = 20  # at least, of an object that another one is in front of
NATURAL_SEED = 20_269_999
NATURAL_SCENES = 512

Drawn = TypeVar("Drawn", Scenes, TwoObjects)


@dataclass(frozen=True)
class Plan:
    """Which pairs of a case go together in one call of the pipeline: one word, one size."""

    case: str
    word: str
    numbers: tuple[int, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """The pairs' names, unique within the case."""
        return tuple(f"{number:05d}" for number in self.numbers)


@dataclass(frozen=True)
class Batch:
    """B pairs, ready to be made.

    Attributes:
        plan: which they are; its word names the foreground in every prompt, "" leaves it open.
        prompts: B texts.
        seeds: B, one per picture's noise.
        conditions: per unit [B, 3, H, W] in [0, 1], the foreground's first.
        object_mask: bool [B, H, W], where the object should be, or None where that is not known.
        details: what the source of the pairs needs to score them.
        nets: for each condition the number of the model's ControlNet that takes it; None: they
            are in their order.
        more_words: those of further units in front, which follow the first in their order.
    """

    plan: Plan
    prompts: list[str]
    seeds: list[int]
    conditions: list[Tensor]
    object_mask: Tensor | None
    details: Any
    nets: tuple[int, ...] | None = None
    more_words: tuple[str, ...] = ()


class Source(Protocol):
    """Pairs in batches, and their scores.

    Attributes:
        cases: which of `CASES` there are.
        shared_foreground: whether pairs of one id have prompt, noise and foreground in common
            in both cases.
    """

    cases: tuple[str, ...]
    shared_foreground: bool

    def plans(self, case: str, count: int, size: int) -> list[Plan]:
        """The first `count` pairs of a case, in batches of at most `size`."""

    def has_objects(self, plan: Plan) -> bool:
        """Whether it is known where the objects of the planned pairs should be."""

    def has_pictures(self, plan: Plan) -> bool:
        """Whether the planned pairs come with pictures for `ceilings`."""

    def load(self, plan: Plan) -> Batch:
        """The planned pairs."""

    def score(self, batch: Batch, pictures: Tensor) -> list[dict[str, float]]:
        """Every measure of pictures [B, 3, H, W], by name, one dict per picture."""

    def ceilings(self, batch: Batch, pipe: Any) -> dict[str, Tensor]:
        """Pictures that no method can be expected to surpass, by the name of their row."""


class DrawnPairs:
    """The demo world: outline and region map of a scene, the map without or with the object.

    Or two objects in one scene, side by side or the first in front of the second, each with a whole
    outline of its own, and the landscape's map.
    """

    cases = CASES
    shared_foreground = True

    def plans(self, case: str, count: int, size: int) -> list[Plan]:
        """See `Source`. A batch holds scenes of one shape, the noun of their captions."""
        plans = []
        for first in range(0, count, CHUNK):
            number = first // CHUNK
            shapes = (
                [" ".join(pair) for pair in two_chunk(case, number).shapes]
                if case in SEVERAL
                else drawn_chunk(number).shape
            )[: count - first]
            for word in sorted(set(shapes)):
                members = [first + n for n, shape in enumerate(shapes) if shape == word]
                plans += [Plan(case, word, tuple(part)) for part in split(members, size)]
        return plans

    def has_objects(self, plan: Plan) -> bool:
        """See `Source`."""
        return True

    def has_pictures(self, plan: Plan) -> bool:
        """See `Source`."""
        return True

    def load(self, plan: Plan) -> Batch:
        """See `Source`."""
        number, members = plan.numbers[0] // CHUNK, [n % CHUNK for n in plan.numbers]
        if plan.case in SEVERAL:
            two = pick(two_chunk(plan.case, number), members)
            first, second = two.shapes[0]
            return Batch(
                replace(plan, word=first),
                prompts=two.captions,
                seeds=list(plan.numbers),
                conditions=[*two.outlines, two.landscape_map],
                object_mask=two.object_mask,
                details=two,
                nets=(2, 2, 1),
                more_words=(second,),
            )
        scenes = pick(drawn_chunk(number), members)
        background = scenes.landscape_map if plan.case == CONFLICT else scenes.region_map
        return Batch(
            plan,
            prompts=scenes.captions,
            seeds=list(plan.numbers),
            conditions=[scenes.outline, background],
            object_mask=scenes.object_mask,
            details=scenes,
        )

    def score(self, batch: Batch, pictures: Tensor) -> list[dict[str, float]]:
        """See `Source`. The measures are those of `demo.metrics`."""
        if isinstance(batch.details, TwoObjects):
            return _score_two(batch.plan.case, batch.details, pictures)
        scenes: Scenes = batch.details
        colours = zip(metrics.object_colour(pictures), scenes.colour, strict=True)
        right = torch.tensor([float(seen == meant) for seen, meant in colours])
        found = zip(metrics.regions_present(pictures), scenes.named, strict=True)
        named = torch.tensor([float(set(names) <= present) for present, names in found])
        columns = {
            "iou": metrics.object_iou(pictures, scenes.object_mask),
            "regions": metrics.region_accuracy(pictures, scenes),
            "mse": metrics.outside_mse(pictures, scenes),
            "rim": metrics.rim_mse(pictures, scenes),
            "colour": right,
            "caption": right * named,
            "ssim": metrics.ssim(pictures, scenes.picture),
            "natural": naturalness()(pictures),
        }
        return rows_of(columns)

    def ceilings(self, batch: Batch, pipe: Any) -> dict[str, Tensor]:
        """The scenes as drawn, and what the model's VAE makes of them."""
        return {"drawn": batch.details.picture, "vae": through_vae(pipe, batch.details.picture)}


@lru_cache(maxsize=8)
def drawn_chunk(number: int) -> Scenes:
    """The scenes of one chunk; every one has an object."""
    return draw(CHUNK, torch.Generator().manual_seed(SCENE_SEED + number), object_free=0)


@lru_cache(maxsize=8)
def two_chunk(case: str, number: int) -> TwoObjects:
    """The scenes of one chunk, of two objects each."""
    if case == TWO:
        return draw_two(CHUNK, torch.Generator().manual_seed(TWO_SEED + number))
    drawn = draw_overlapping(2 * CHUNK, torch.Generator().manual_seed(OVERLAPPING_SEED + number))
    overlap = drawn.hidden.flatten(1).sum(1) >= HIDDEN_PIXELS
    return pick(drawn, overlap.nonzero()[:CHUNK, 0].tolist())


def _score_two(case: str, scenes: TwoObjects, pictures: Tensor) -> list[dict[str, float]]:
    """Each object in its own colour, the worse of the two, and which one is in front.

    Of objects apart from each other also whatever colour is in each one's half, and whether each
    has the other's.
    """
    own = own_ious(pictures, scenes)
    columns = {"own": own.mean(0), "own worse": own.amin(0)}
    if case == TWO:
        halves = metrics.apart(pictures, scenes.masks)
        ious = torch.stack(
            [metrics.object_iou(*one) for one in zip(halves, scenes.masks, strict=True)]
        )
        found = list(zip(*(metrics.object_colour(half) for half in halves), strict=True))
        pairs = list(zip(found, scenes.colours, strict=True))
        columns |= {
            "iou": ious.mean(0),
            "worse": ious.amin(0),
            "colour": torch.tensor([float(seen == meant) for seen, meant in pairs]),
            "swapped": torch.tensor([float(a == d or b == c) for (a, b), (c, d) in pairs]),
        }
    else:
        columns["front"] = in_front(pictures, scenes)
    columns |= {
        "regions": metrics.region_accuracy(pictures, scenes),
        "mse": metrics.outside_mse(pictures, scenes),
        "rim": metrics.rim_mse(pictures, scenes),
        "ssim": metrics.ssim(pictures, scenes.picture),
    }
    return rows_of(columns)


@lru_cache(maxsize=1)
def naturalness() -> Naturalness:
    """The image-quality score, fitted to drawn scenes that are in no pair."""
    scenes = draw(NATURAL_SCENES, torch.Generator().manual_seed(NATURAL_SEED))
    return Naturalness.fitted(scenes.picture)


def pick(scenes: Drawn, numbers: Sequence[int]) -> Drawn:
    """Some of the scenes."""

    def some(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(some, value))
        return value[list(numbers)] if isinstance(value, Tensor) else [value[n] for n in numbers]

    return type(scenes)(**{f.name: some(getattr(scenes, f.name)) for f in fields(scenes)})


@torch.inference_mode()
def through_vae(pipe: Any, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1], encoded and decoded."""
    vae = pipe.vae
    values = pictures.to(vae.device, vae.dtype) * 2 - 1
    decoded = vae.decode(vae.encode(values).latent_dist.mode()).sample
    return (decoded.float().cpu() / 2 + 0.5).clamp(0, 1)


def split(members: Sequence[Any], size: int) -> list[list[Any]]:
    """The members in parts of nearly equal length, `size` at most."""
    parts = -(-len(members) // size)
    ends = [round(len(members) * n / parts) for n in range(parts + 1)] if parts else []
    return [list(members[a:b]) for a, b in itertools.pairwise(ends)]


def rows_of(columns: dict[str, Tensor]) -> list[dict[str, float]]:
    """One dict per entry of columns [B]."""
    count = len(next(iter(columns.values())))
    return [{name: float(values[n]) for name, values in columns.items()} for n in range(count)]

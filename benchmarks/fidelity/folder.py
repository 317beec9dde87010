"""Condition pairs of one's own: a folder with images and a `pairs.json`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from demo.command_line import SEED_LIMIT
from lib_ccn.images import ImageError, read_numbers, read_picture, to_condition, to_mask

from .pairs import CASES, CONFLICT, Batch, Plan, split

PAIRS = "pairs.json"


class PairsError(Exception):
    """The pairs cannot be read; the message names the file or the field."""


@dataclass(frozen=True)
class FolderPair:
    """One entry of a folder's `pairs.json`; the files are relative to the folder.

    Attributes:
        prompt: what to draw.
        foreground: image file, the object's condition.
        background: image file, the condition of everything else.
        case: "conflict" (default) or "complementary".
        word: names the foreground in the prompt; "" leaves it to the method.
        seed: of the noise; None takes the entry's place in the list.
        object_mask: image file, white where the object should be.
        labels: image file of class numbers, as the segmenter counts them; 255 is not judged.
        reference: image file, the picture that the conditions were taken from.
        conditions: kinds of the two, such as "pose+seg"; "" leaves them open.
    """

    prompt: str
    foreground: str
    background: str
    case: str = CONFLICT
    word: str = ""
    seed: int | None = None
    object_mask: str | None = None
    labels: str | None = None
    reference: str | None = None
    conditions: str = ""

    @property
    def background_kind(self) -> str:
        """The kind of the background's condition; "" where that is open."""
        return self.conditions.partition("+")[2]


class FolderPairs:
    """Pairs of a folder with a `pairs.json`, scored by whatever `Scorers` were asked for."""

    shared_foreground = False

    def __init__(self, folder: Path, size: tuple[int, int], scorers: Any) -> None:
        self.folder, self.size, self.scorers = folder, size, scorers
        self.pairs = read_pairs(folder)
        self.cases = tuple(c for c in CASES if any(p.case == c for p in self.pairs))

    @property
    def conditions(self) -> str:
        """The kinds of conditions that all pairs have, "" where they differ or are open."""
        kinds = {pair.conditions for pair in self.pairs}
        return kinds.pop() if len(kinds) == 1 else ""

    def plans(self, case: str, count: int, size: int) -> list[Plan]:
        """See `Source`; pairs of one word, all with a mask or reference or none, go together."""
        chosen = [n for n, pair in enumerate(self.pairs) if pair.case == case][:count]
        members: dict[tuple[str, bool, bool], list[int]] = {}
        for number in chosen:
            pair = self.pairs[number]
            alike = (pair.word, pair.object_mask is None, pair.reference is None)
            members.setdefault(alike, []).append(number)
        return [
            Plan(case, word, tuple(part))
            for (word, *_), numbers in members.items()
            for part in split(numbers, size)
        ]

    def has_objects(self, plan: Plan) -> bool:
        """See `Source`."""
        return all(self.pairs[number].object_mask is not None for number in plan.numbers)

    def has_pictures(self, plan: Plan) -> bool:
        """See `Source`."""
        return all(self.pairs[number].reference is not None for number in plan.numbers)

    def load(self, plan: Plan) -> Batch:
        """See `Source`."""
        pairs = [self.pairs[number] for number in plan.numbers]
        masks = [self._mask(pair.object_mask) for pair in pairs]
        known = [mask for mask in masks if mask is not None]
        return Batch(
            plan,
            prompts=[pair.prompt for pair in pairs],
            seeds=[
                number if pair.seed is None else pair.seed
                for number, pair in zip(plan.numbers, pairs, strict=True)
            ],
            conditions=[
                torch.stack([self._image(getattr(pair, side)) for pair in pairs])
                for side in ("foreground", "background")
            ],
            object_mask=torch.stack(known) if len(known) == len(masks) else None,
            details=pairs,
        )

    def score(self, batch: Batch, pictures: Tensor) -> list[dict[str, float]]:
        """See `Source`."""
        pairs = batch.details
        rows: list[dict[str, float]] = self.scorers.score(
            pictures,
            prompts=[pair.prompt for pair in pairs],
            background=batch.conditions[1],
            kinds=[pair.background_kind for pair in pairs],
            object_masks=[self._mask(pair.object_mask) for pair in pairs],
            labels=[self._labels(pair.labels) for pair in pairs],
            references=[
                None if pair.reference is None else self._image(pair.reference) for pair in pairs
            ],
        )
        return rows

    def ceilings(self, batch: Batch, pipe: Any) -> dict[str, Tensor]:
        """The reference pictures, where every pair has one."""
        if any(pair.reference is None for pair in batch.details):
            return {}
        return {"drawn": torch.stack([self._image(pair.reference) for pair in batch.details])}

    def _image(self, name: str) -> Tensor:
        with self._naming(name) as path:
            return to_condition(read_picture(path, self.size), self.size)

    def _mask(self, name: str | None) -> Tensor | None:
        if name is None:
            return None
        with self._naming(name) as path:
            mask = to_mask(read_picture(path, self.size))[0]
        grey = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
        return torch.from_numpy(
            np.array(ImageOps.fit(grey, self.size, Image.Resampling.BILINEAR)) > 127
        )

    def _labels(self, name: str | None) -> Tensor | None:
        if name is None:
            return None
        with self._naming(name) as path:
            image = read_numbers(path)
        if image.mode not in ("L", "P", "I", "I;16"):
            raise PairsError(f"{self.folder / name} is {image.mode}; expected one class per pixel")
        fitted = ImageOps.fit(image, self.size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(fitted).astype(np.int64))

    @contextmanager
    def _naming(self, name: str) -> Iterator[Path]:
        """The path of a file, which a refusal names."""
        path = self.folder / name
        try:
            yield path
        except ImageError as error:
            raise PairsError(f"{path} cannot be read: {error}") from error


def pairs_digest(folder: Path) -> str:
    """SHA-256 of `folder/pairs.json`.

    Raises:
        PairsError: there is none.
    """
    return hashlib.sha256(_content(folder)).hexdigest()


def read_pairs(folder: Path) -> list[FolderPair]:
    """The entries of `folder/pairs.json`.

    Raises:
        PairsError: there is none, or an entry has a field that is missing, unknown or wrong.
    """
    path = folder / PAIRS
    try:
        entries = json.loads(_content(folder))
    except ValueError as error:
        raise PairsError(f"{path} is no JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise PairsError(f"{path} must be a list of pairs, with at least one")
    known = {field.name for field in fields(FolderPair)}
    pairs = []
    for number, entry in enumerate(entries):
        where = f"{path}, pair {number}"
        if not isinstance(entry, dict):
            raise PairsError(f"{where} is {entry!r}; expected an object of names and values")
        unknown, missing = set(entry) - known, {"prompt", "foreground", "background"} - set(entry)
        if unknown or missing:
            what = f"unknown {sorted(unknown)}" if unknown else f"no {sorted(missing)}"
            raise PairsError(f"{where}: {what}; known are {', '.join(sorted(known))}")
        pair = FolderPair(**entry)
        if pair.case not in CASES:
            raise PairsError(f"{where}: case is {pair.case!r}; allowed: {', '.join(CASES)}")
        kinds = pair.conditions
        if not isinstance(kinds, str) or (kinds and not re.fullmatch(r"\w+\+\w+", kinds)):
            raise PairsError(f'{where}: conditions is {kinds!r}; allowed: "pose+seg" and the like')
        if pair.seed is not None and (
            type(pair.seed) is not int or not 0 <= pair.seed <= SEED_LIMIT
        ):
            allowed = f"a whole number from 0 to {SEED_LIMIT}, or null"
            raise PairsError(f"{where}: seed is {pair.seed!r}; allowed: {allowed}")
        pairs.append(pair)
    return pairs


def _content(folder: Path) -> bytes:
    path = folder / PAIRS
    try:
        return path.read_bytes()
    except OSError as error:
        raise PairsError(f"{path} cannot be read: {error.strerror}") from error

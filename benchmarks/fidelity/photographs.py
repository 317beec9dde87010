"""One photograph of a person and one of a place, made into condition pairs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from lib_ccn.images import ImageError, read_picture

from .detectors import Detectors
from .pairs import COMPLEMENTARY, CONFLICT

PICTURES = "pictures"
# What a caption may call a person; the first one found is the pair's word.
PERSONS = (
    *("person", "man", "woman", "boy", "girl", "child", "baby", "lady", "guy", "people", "men"),
    *("women", "children", "kid", "kids", "player", "batter", "skier", "surfer", "skateboarder"),
    *("snowboarder", "rider", "dancer", "worker", "couple"),
)


@dataclass(frozen=True)
class Wanted:
    """What pairs are made of, and which photographs will do.

    Attributes:
        conditions: such as "pose+seg", the foreground's kind first.
        size: the side of every picture, in pixels.
        least, most: the object's share of its photograph.
        complementary: whether a photograph's own two conditions make a pair, too.
        label: what the object is called.
    """

    conditions: tuple[str, ...]
    size: int
    least: float
    most: float
    complementary: bool
    label: str


def look(
    out: Path, number: int, person: Path, place: Path, wanted: Wanted, detectors: Detectors
) -> dict[str, Any]:
    """One photograph's part: its pairs by kind, or the reason why there are none."""
    sources = {"person": person.name, "place": place.name}
    try:
        pictures = {"person": _square(person, wanted.size), "place": _square(place, wanted.size)}
    except ImageError as error:
        return {**sources, "pairs": {}, "reason": f"cannot be read: {error}"}
    classes = {name: detectors.classes(picture) for name, picture in pictures.items()}
    mask = classes["person"] == detectors.object_class
    share = float(mask.float().mean())
    if share == 0 or not wanted.least <= share <= wanted.most:
        reason = f"{wanted.label} is {share:.3f} of the picture"
        return {**sources, "pairs": {}, "reason": reason}
    if bool((classes["place"] == detectors.object_class).any()):
        return {**sources, "pairs": {}, "reason": f"the place has a {wanted.label}"}

    def save(name: str, picture: Image.Image, **more: Any) -> str:
        picture.save(out / PICTURES / f"{number:06d}-{name}", **more)
        return f"../{PICTURES}/{number:06d}-{name}"

    made: dict[tuple[str, str], str] = {}
    for pair in wanted.conditions:
        front, back = pair.split("+")
        needed = [("person", front), ("place", back)]
        needed += [("person", back)] if wanted.complementary else []
        for name, kind in needed:
            if (name, kind) in made:
                continue
            image = detectors.condition(kind, pictures[name], classes[name])
            if kind == front and image.convert("L").getextrema() == (0, 0):
                return {**sources, "pairs": {}, "reason": f"no {kind} is seen"}
            made[name, kind] = save(f"{name}-{kind}.png", image)

    subject = detectors.caption(_cropped(pictures["person"], mask))
    word, subject = named(subject, wanted.label)
    common = {"seed": number, "object_mask": save("mask.png", _grey(mask * 255))}
    labels = {name: save(f"{name}-classes.png", _grey(found)) for name, found in classes.items()}
    conflict = {
        **common,
        "prompt": f"{subject}, {detectors.caption(pictures['place'])}",
        "word": word,
        "case": CONFLICT,
        "labels": labels["place"],
    }
    agreeing: dict[str, Any] = {}
    if wanted.complementary:
        word, prompt = named(detectors.caption(pictures["person"]), wanted.label)
        agreeing = {
            **common,
            "prompt": prompt,
            "word": word,
            "case": COMPLEMENTARY,
            "labels": labels["person"],
            "reference": save("reference.jpg", pictures["person"], quality=95),
        }
    pairs: dict[str, list[dict[str, Any]]] = {}
    for pair in wanted.conditions:
        front, back = pair.split("+")
        ends = {"foreground": made["person", front], "conditions": pair}
        pairs[pair] = [{**conflict, **ends, "background": made["place", back]}]
        if agreeing:
            pairs[pair].append({**agreeing, **ends, "background": made["person", back]})
    return {**sources, "pairs": pairs, "reason": ""}


def named(caption: str, label: str) -> tuple[str, str]:
    """The word that names the object in a caption, and the caption, which then has it."""
    names = PERSONS if label == "person" else (label,)
    for word in re.findall(r"\w+", caption.lower()):
        if word in names:
            return word, caption
    return label, f"a {label}, {caption}" if caption else f"a {label}"


def _square(path: Path, size: int) -> Image.Image:
    picture = read_picture(path, (size, size)).convert("RGB")
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def _grey(values: Tensor) -> Image.Image:
    return Image.fromarray(values.to(torch.uint8).numpy(), "L")


def _cropped(picture: Image.Image, mask: Tensor) -> Image.Image:
    """What is around the object, so that its caption is not about its surroundings."""
    rows, columns = (torch.nonzero(mask.any(axis)).flatten() for axis in (1, 0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return picture.crop(box)

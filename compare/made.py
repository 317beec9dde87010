"""What both ways of making pictures have in common: a job, what came of it, who makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from .pairs import Pair


class MakeError(Exception):
    """A picture cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Sampling:
    """What all pictures of a comparison are sampled with."""

    size: tuple[int, int]
    steps: int
    guidance_scale: float
    sampler: str


@dataclass(frozen=True)
class Job:
    """One picture that is asked for.

    Attributes:
        pair, method, seed: which it is; `method` is a key of `METHODS`.
        settings: of the method, None where it is off.
        conditions: RGB, the one in front first.
    """

    pair: Pair
    method: str
    seed: int
    settings: Mapping[str, Any] | None
    conditions: Sequence[Image.Image]


@dataclass
class Made:
    """One picture that was made.

    Attributes:
        picture: RGB.
        strip: mask and winners beside the picture, where the method gave them.
        seconds: all that it took.
        step_seconds: of one sampling step; None where it cannot be told.
        done: what the method says it did, a line for each pass.
        note: what it could not do, and why; empty for nothing.
    """

    picture: Image.Image
    strip: Image.Image | None
    seconds: float
    step_seconds: float | None
    done: list[str] = field(default_factory=list)
    note: str = ""


class Maker(Protocol):
    """Who makes the pictures: a WebUI, or diffusers here."""

    sampling: Sampling
    nets: Mapping[str, str]

    def about(self) -> dict[str, str]:
        """The machine, versions and models, for people, by what they are."""

    def identity(self) -> dict[str, Any]:
        """What else than a job decides how a picture looks: plain JSON values."""

    def make(self, job: Job) -> Made:
        """Make a picture; raises MakeError."""

    def interrupt(self) -> None:
        """The user has broken off: what is being made is not wanted any more."""

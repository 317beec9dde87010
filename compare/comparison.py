"""The comparison: every pair with every method from the same seeds, kept, timed and counted."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from demo.progress import step_bar
from lib_ccn import __version__

from .made import Job, Maker
from .pairs import METHODS, NEGATIVE, PLAIN, Pair
from .store import Kept, Store

# Of grey levels, 0 to 255: a picture with less is of one colour, and shows nothing.
_FLAT = 2


@dataclass
class Row:
    """A pair's pictures from one seed, by method."""

    pair: Pair
    seed: int
    pictures: dict[str, Kept] = field(default_factory=dict)

    def seconds(self, method: str) -> float | None:
        """Of a step with that method, if it was timed."""
        kept = self.pictures.get(method)
        return None if kept is None else kept.record["step_seconds"]


@dataclass
class Comparison:
    """What is asked for, and what there is of it.

    Attributes:
        pairs: in the order of the page.
        methods: keys of `METHODS`, the plain sum first.
        seeds: of every pair and method.
        about: the machine, versions and models, by what they are.
        maker: who makes the pictures.
        notices: what is to be known beforehand, such as what is left out; a sentence each.
        rows: the last may lack methods, if it was broken off.
    """

    pairs: Sequence[Pair]
    methods: Sequence[str]
    seeds: Sequence[int]
    maker: Maker
    about: Mapping[str, str]
    notices: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)

    def run(self, store: Store) -> None:
        """Make what is not kept yet.

        Raises:
            MakeError: a picture cannot be made.
            OSError: one cannot be written.
        """
        steps = self.maker.sampling.steps
        total = len(self.pairs) * len(self.seeds) * len(self.methods) * steps
        with step_bar(total) as bar:
            for pair in self.pairs:
                conditions = pair.conditions(self.maker.sampling.size)
                for (kind, name), condition in zip(pair.ends, conditions, strict=True):
                    store.keep_condition(f"{kind}-{name}", condition)
                for seed in self.seeds:
                    row = Row(pair, seed)
                    self.rows.append(row)
                    for method in self.methods:
                        bar.set_description(f"{pair.name} {method}")
                        settings = METHODS[method].asked(pair)
                        job = Job(pair, method, seed, settings, conditions)
                        asked = _asked(self.maker, job)
                        name = f"{pair.name}-{seed}-{method}"
                        kept = store.find(name, asked)
                        if kept is None:
                            kept = store.keep(name, asked, self.maker.make(job))
                        row.pictures[method] = kept
                        bar.update(steps)

    @property
    def whole(self) -> bool:
        """Whether every picture is there."""
        wanted = len(self.pairs) * len(self.seeds) * len(self.methods)
        return sum(len(row.pictures) for row in self.rows) == wanted

    def step_seconds(self, method: str) -> float | None:
        """The median of a method's seconds a step; None where nothing was timed."""
        found = [seconds for row in self.rows if (seconds := row.seconds(method)) is not None]
        return statistics.median(found) if found else None

    def ratio(self, method: str) -> float | None:
        """The median of a method's time a step to the plain sum's of the same pair and seed."""
        times = ((row.seconds(method), row.seconds(PLAIN)) for row in self.rows)
        found = [mine / plain for mine, plain in times if mine is not None and plain]
        return statistics.median(found) if found else None

    def remarks(self) -> list[str]:
        """What one has to know of single pictures: what was not done, and why."""
        found = []
        for row in self.rows:
            for method, kept in row.pictures.items():
                where = f"{row.pair.name}, seed {row.seed}, {METHODS[method].title}"
                if kept.record["note"]:
                    found.append(f"{where}: {kept.record['note']}")
                if is_flat(kept.picture):
                    found.append(f"{where}: the picture is of one colour")
        return found


def is_flat(path: Path) -> bool:
    """Whether a picture is of one colour, as NaN gives it."""
    with Image.open(path) as file:
        histogram = file.convert("L").histogram()
    levels = [level for level, count in enumerate(histogram) if count]
    return levels[-1] - levels[0] < _FLAT


def _asked(maker: Maker, job: Job) -> dict[str, Any]:
    """All that decides how a picture looks."""
    sampling = maker.sampling
    return {
        "version": __version__,
        **maker.identity(),
        "prompt": job.pair.prompt,
        "negative_prompt": NEGATIVE,
        "seed": job.seed,
        "steps": sampling.steps,
        "size": list(sampling.size),
        "guidance_scale": sampling.guidance_scale,
        "sampler": sampling.sampler,
        "controlnets": [maker.nets[kind] for kind in job.pair.kinds],
        "conditions": [hashlib.sha256(c.tobytes()).hexdigest()[:16] for c in job.conditions],
        "settings": job.settings,
    }

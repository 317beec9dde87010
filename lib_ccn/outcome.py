"""What sampling runs did with their units: counted while they ran, told when they are over.

Nothing here decides anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .settings import Settings, fields
from .units import Role

_Value = TypeVar("_Value")


@dataclass
class Outcome:
    """Counts of a sampling run.

    Attributes:
        settings: what was asked for.
        calls: UNet calls that were begun.
        fused: in how many of them residuals were fused.
        injections: attention layers that keys and values were injected into, over all calls.
        steps: the sampler's steps that were begun.
        together: those in which two or more units that can be fused were active.
        paired: those in which the foreground unit and a background unit were.
        masked: those that had a mask of use.
        injected: those in which something was injected.
        layers: the numbers of those that something was injected into.
        seconds: of this program's time that the fusion and the mask took.
        waited: those of them in which an accelerator's earlier work may have been waited for.
        queued: whether an accelerator did the work, so that `seconds` is the time to ask for it.
        explained: whether a note has said already why nothing is injected.
        tiled: whether the UNet saw parts of the picture only.
    """

    settings: Settings
    calls: int = 0
    fused: int = 0
    injections: int = 0
    steps: set[int] = field(default_factory=set)
    together: set[int] = field(default_factory=set)
    paired: set[int] = field(default_factory=set)
    masked: set[int] = field(default_factory=set)
    injected: set[int] = field(default_factory=set)
    layers: set[int] = field(default_factory=set)
    seconds: float = 0.0
    waited: float = 0.0
    queued: bool = False
    explained: bool = False
    tiled: bool = False

    def begin(self, step: int, roles: Iterable[Role], masked: bool) -> None:
        """A UNet call of `step` begins, with these units and a mask of use or none."""
        self.calls += 1
        self.steps.add(step)
        present = [role for role in roles if role is not Role.BYSTANDER]
        if len(present) > 1:
            self.together.add(step)
        if {Role.FOREGROUND, Role.BACKGROUND} <= set(present):
            self.paired.add(step)
        if masked:
            self.masked.add(step)

    def inject(self, step: int, count: int, layers: Iterable[int]) -> None:
        """Keys and values were injected into `count` attentions of one unit, in these layers."""
        self.injections += count
        if count:
            self.injected.add(step)
            self.layers.update(layers)

    @contextmanager
    def timed(self, waits: bool = False) -> Iterator[None]:
        """What is done inside took the time that it took, or, within such a part, waited."""
        began = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - began
            if waits:
                self.waited += passed
            else:
                self.seconds += passed

    def joined(self, later: Outcome) -> Outcome:
        """The two as one, as for batches of one generation."""
        return replace(
            self,
            calls=self.calls + later.calls,
            fused=self.fused + later.fused,
            injections=self.injections + later.injections,
            steps=self.steps | later.steps,
            together=self.together | later.together,
            paired=self.paired | later.paired,
            masked=self.masked | later.masked,
            injected=self.injected | later.injected,
            layers=self.layers | later.layers,
            seconds=self.seconds + later.seconds,
            waited=self.waited + later.waited,
            queued=self.queued or later.queued,
            tiled=self.tiled or later.tiled,
        )

    def found_tiles(self) -> None:
        """The UNet works on tiles: what was done so far with the whole picture reached no UNet."""
        self.tiled = True
        if self.settings.fusion == "layers":
            self.fused = 0
        self.injections = 0
        self.injected.clear()
        self.layers.clear()

    def fusion(self) -> str:
        """How the residuals became one, in words."""
        if self.settings.fusion == "sum":
            return "sum, as the host makes it"
        if not self.fused:
            layered = self.settings.fusion == "layers"
            return f"layers, but {self._without_places()}" if layered else "not fused"
        over = f" over {self.settings.outside_places}" if self.settings.layers_over_fusion else ""
        how = f"{self.settings.fusion}{over}, delta {self.settings.delta:g}"
        if self.settings.fusion == "layers" and self.settings.foreground_gain != 1:
            how = f"{how}, gain {self.settings.foreground_gain:g}"
        return how if self.fused == self.calls else f"{how}, in {self.fused} of {self.calls} calls"

    def _without_places(self) -> str:
        """What layers are where nobody has a place."""
        rule = self.settings.outside_places
        return "all added up" if rule == "sum" else f"{rule} everywhere"

    def injection(self, mask: str) -> str:
        """What was injected, in words; `mask` says where the mask came from."""
        if not self.injected:
            return "KV-Injection: nothing injected"
        where = f"KV-Injection in {spans(self.layers, 'layer')}, {spans(self.injected)}"
        return f"{where}, {mask}" if mask else where

    def cost(self) -> str:
        """What it took, in words, as far as that is known; "" where nothing was done.

        An accelerator works on while the program goes on. KV-Injection is part of the ControlNets'
        own time.
        """
        done = {"fusion": self.fused, "mask": self.masked}
        what = " and ".join(name for name, was_done in done.items() if was_done)
        if not what:
            return ""
        if self.queued:
            return f"{_duration(self.seconds - self.waited)} to ask the GPU for {what}"
        return f"{_duration(self.seconds)} for {what}"

    def shortfalls(self) -> list[str]:
        """What was asked for and did not happen, and why; empty before the first call."""
        if not self.calls:
            return []
        if not self.together:
            return ["nothing was fused: never were two units that can be fused active at once"]
        found = []
        if self.settings.fusion == "layers" and not self.fused:
            what = "all were added up"
            if self.settings.layers_over_fusion:
                what = f"it was {self._without_places()}"
            found.append(f"no unit had its place, so {what}: {self._why_no_place()}")
        elif self.settings.fusion != "sum" and not self.fused:
            found.append("nothing was fused: the units' residuals do not fit each other")
        if self.settings.inject and not self.injected and not self.explained:
            found.append(f"nothing was injected: {self._why_not_injected()}")
        return found

    def _why_no_place(self) -> str:
        if self.tiled:
            return "the UNet works on tiles"
        if not self.masked:
            return "there never was a mask"
        return "never was a unit in front active while it had a mask"

    def _why_not_injected(self) -> str:
        start = self.settings.injection_start
        label = fields()["start_step"].label.lower()
        if max(self.steps) < start:
            return f"the {label} is {start}, and the units ran in {spans(self.steps)} only"
        paired = {step for step in self.paired if step >= start}
        if not paired:
            when = f"from step {start} on " if start else ""
            return f"{when}the foreground unit and a background unit were never active at once"
        if not paired & self.masked:
            return f"there was no foreground mask in {spans(paired)}"
        return "the ControlNets' attention could not be reached"


@dataclass(frozen=True)
class ToldPlace:
    """What is told of the place of a unit in front.

    Attributes:
        units: whose it is, by name.
        source: of its mask.
        words: those that masks were read from, each with how it was chosen.
        fronts: the share of each picture that was in it, 0..1.
    """

    units: Sequence[str]
    source: str
    words: Sequence[str] = ()
    fronts: Sequence[float] = ()

    def line(self) -> str:
        """It in words, without whose it is."""
        words = ", ".join(self.words)
        named = f"mask from {self.source}" + (f" {words}" if words else "")
        return f"{named}, {shares(self.fronts)} of the picture in front" if self.fronts else named

    def joined(self, later: ToldPlace) -> ToldPlace:
        """The two as one, as for batches of one generation."""
        words = _once([*self.words, *later.words])
        return replace(self, words=words, fronts=[*self.fronts, *later.fronts])


@dataclass(frozen=True)
class Account:
    """What is told of a sampling run, or of several as one.

    Attributes:
        outcome: None where the units were left to the host.
        units: what each did, by its name.
        places: those of the units in front, front to back.
        notes: what else there is to say.
    """

    outcome: Outcome | None = None
    units: Sequence[tuple[str, str]] = ()
    places: Sequence[ToldPlace] = ()
    notes: Sequence[str] = ()

    def line(self) -> str:
        """It all in one line."""
        if self.outcome is None:
            return "; ".join(self.notes)
        units = ", ".join(f"{name} ({part})" for name, part in self.units)
        parts = [f"{units}: {self.outcome.fusion()}"]
        layered = self.outcome.settings.fusion == "layers"
        if layered:
            parts.append(self._masks())
        if self.outcome.settings.inject:
            parts.append(self.outcome.injection("" if layered else self._masks()))
        return "; ".join([*parts, *filter(None, [self.outcome.cost()]), *self.notes])

    def _masks(self) -> str:
        if len(self.places) == 1:
            return self.places[0].line()
        return ", ".join(f"{' and '.join(p.units)}: {p.line()}" for p in self.places)

    def joined(self, later: Account) -> Account:
        """The two as one; what was said is not said again."""
        if self.outcome is None or later.outcome is None:
            first = self if later.outcome is None else later
            return replace(first, notes=_once([*self.notes, *later.notes]))
        return Account(
            self.outcome.joined(later.outcome),
            self.units if self.units == later.units else _once([*self.units, *later.units]),
            _joined_places(self.places, later.places),
            _once([*self.notes, *later.notes]),
        )


def _joined_places(first: Sequence[ToldPlace], later: Sequence[ToldPlace]) -> list[ToldPlace]:
    """Places of the same units as one."""
    joined = {tuple(place.units): place for place in first}
    for place in later:
        known = joined.get(tuple(place.units))
        joined[tuple(place.units)] = place if known is None else known.joined(place)
    return list(joined.values())


def shares(values: Sequence[float]) -> str:
    """Shares as people write them: "31 %", "12 to 31 %"."""
    low, high = (round(100 * value) for value in (min(values), max(values)))
    return f"{high} %" if low == high else f"{low} to {high} %"


def spans(numbers: Iterable[int], what: str = "step") -> str:
    """Numbers as people write them: "step 3", "steps 0 to 4 and 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    many = len(parts) > 1 or any(first != last for first, last in runs)
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{what}{'s' if many else ''} {listed}"


def _duration(seconds: float) -> str:
    return f"about {seconds:.1f} s" if seconds >= 0.05 else "less than 0.1 s"


def _once(values: Iterable[_Value]) -> list[_Value]:
    return list(dict.fromkeys(values))

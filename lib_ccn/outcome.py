"""What one sampling run did with its units: counted while it ran, told when it is over.

Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .settings import Settings, fields
from .units import Role


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
        explained: whether a note has said already why nothing is injected.
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
    explained: bool = False

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

    def inject(self, step: int, layers: int) -> None:
        """Keys and values were injected into so many layers of one unit."""
        self.injections += layers
        if layers:
            self.injected.add(step)

    def forget_injections(self) -> None:
        """What was injected so far reached no UNet."""
        self.injections = 0
        self.injected.clear()

    def fusion(self) -> str:
        """How the residuals became one, in words."""
        if self.settings.fusion == "sum":
            return "sum, as the host makes it"
        if not self.fused:
            return "not fused"
        how = f"{self.settings.fusion}, delta {self.settings.delta:g}"
        return how if self.fused == self.calls else f"{how}, in {self.fused} of {self.calls} calls"

    def injection(self, mask: str) -> str:
        """What was injected, in words; `mask` says where the mask came from."""
        if not self.injected:
            return "KV-Injection: nothing injected"
        layer = self.settings.start_layer
        onward = f" from layer {layer}" if layer else ""
        return f"KV-Injection{onward} in {spans(self.injected)}, mask from {mask}"

    def shortfalls(self) -> list[str]:
        """What was asked for and did not happen, and why; empty before the first call."""
        if not self.calls:
            return []
        if not self.together:
            return ["nothing was fused: never were two units that can be fused active at once"]
        found = []
        if self.settings.fusion != "sum" and not self.fused:
            found.append("nothing was fused: the units' residuals do not fit each other")
        if self.settings.inject and not self.injected and not self.explained:
            found.append(f"nothing was injected: {self._why_not_injected()}")
        return found

    def _why_not_injected(self) -> str:
        start = self.settings.injection_start
        label = fields()["start_step"].label.lower()
        if max(self.steps) < start:
            return f"the {label} is {start}, and the sampler made {_steps(self.steps)}"
        paired = {step for step in self.paired if step >= start}
        if not paired:
            when = f"from step {start} on " if start else ""
            return f"{when}the foreground unit and a background unit were never active at once"
        if not paired & self.masked:
            return f"there was no foreground mask in {spans(paired)}"
        return "the ControlNets' attention could not be reached"


def spans(numbers: Iterable[int]) -> str:
    """Steps as people write them: "step 3", "steps 0 to 4 and 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    many = len(parts) > 1 or any(first != last for first, last in runs)
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"step{'s' if many else ''} {listed}"


def _steps(steps: set[int]) -> str:
    count = max(steps) + 1
    return "one step only" if count == 1 else f"{count} steps, counted from 0"

"""Who won where: the fusion's own decisions, kept to be shown, and their colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .fusion import pix_fusion
from .units import Call, Unit

# By a unit's place among the fused ones. Under each kind of colour blindness they and the grey stay
# apart (tests/test_winners.py).
COLOURS = ((214, 48, 84), (43, 108, 176), (217, 160, 33), (86, 180, 233), (60, 20, 80))
AVERAGED_COLOUR = (214, 214, 214)


def winners(
    residuals: Sequence[Tensor], delta: float, rule: Callable[..., object] = pix_fusion
) -> Tensor:
    """What `pix_fusion` decides, or another rule of `fusion.py` with decisions; raises as it does.

    Returns:
        int8 [B, H, W], or [B, C] from `channel_fusion`: a unit's place, or `AVERAGED`.
    """
    found: list[Tensor] = []
    rule(residuals, delta, found.append)
    return found[0]


def depths(count: int) -> tuple[int, ...]:
    """The first, a middle and the last place of the way down, of `count` with the middle block."""
    last = max(count - 2, 0)
    return tuple(dict.fromkeys((0, last // 2, last)))


@dataclass(frozen=True)
class Decision:
    """Who won in one picture.

    Attributes:
        step: the sampler's.
        units: those that were fused; a map counts them in this order.
        maps: int8 [h, w] of each of `depths`, on the CPU.
    """

    step: int
    units: tuple[Unit, ...]
    maps: tuple[Tensor, ...]


@dataclass
class Winners:
    """Decisions of the latest step of each picture that was fused.

    They stay where they were made until they are asked for: a copy would wait for an accelerator.
    """

    _latest: dict[int, tuple[int, tuple[Unit, ...], dict[int, Tensor]]] = field(
        default_factory=dict
    )

    def listener(self, call: Call, units: Sequence[Unit]) -> Callable[[int, Tensor], None] | None:
        """What `fuse_residuals` is to tell of this call; None for nothing."""
        if not call.conditional:
            return None
        rows = list(zip(call.conditional_pictures, call.conditional, strict=True))
        shown = dict(reversed(rows))  # of several sub-prompts the first
        for picture in shown:
            self._latest[picture] = (call.step, tuple(units), {})

        def keep(place: int, decision: Tensor) -> None:
            for picture, row in shown.items():
                # The ControlNets may have run for the conditional half of the batch only.
                self._latest[picture][2][place] = decision[row % len(decision)]

        return keep

    def of_all(self, picture: int) -> list[Tensor]:
        """The latest decision about every residual: int8 [h, w], or [C] where channels decide."""
        maps = self._latest.get(picture, (0, (), {}))[2]
        return [maps[place] for place in sorted(maps)]

    def of(self, picture: int) -> Decision | None:
        """The latest decision about a picture's places, or None."""
        every = self.of_all(picture)
        shown = [every[place] for place in depths(len(every))] if every else []
        maps = tuple(decision.cpu() for decision in shown if decision.ndim == 2)
        return Decision(*self._latest[picture][:2], maps) if maps else None

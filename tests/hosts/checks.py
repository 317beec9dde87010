"""What is wanted of every request, whichever models and extensions take part in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from hosts.cases import EVERYWHERE, SUM, using
from hosts.client import Json, Reply, distance, same
from oracles import assert_pixels_follow_formula, channel_oracle, snap
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from hosts.conftest import Host


# What reached the UNet is known as a difference of float32 tensors.
ROUNDING = 2e-5


class Dumped(NamedTuple):
    """One UNet call's residuals.

    Attributes:
        units: of each ControlNet, in the order in which they ran, its residuals [B, C, H, W].
        got: what the UNet added.
        front: "ranks" [units] as the extension has them (-1 behind), "gain", and "places.N"
            [places, B or 1, H, W] for each residual; empty where nobody was in front.
    """

    units: list[list[Tensor]]
    got: list[Tensor]
    front: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Dumped:
        """What the probe has written there."""
        tensors = load_file(folder / "residuals.safetensors")
        names = [name.split(".") for name in tensors]
        layers = 1 + max(int(name[-1]) for name in names if name[0] == "got")
        count = 1 + max(int(name[1]) for name in names if name[0] == "unit")
        return cls(
            [[tensors[f"unit.{u}.{i}"] for i in range(layers)] for u in range(count)],
            [tensors[f"got.{i}"] for i in range(layers)],
            {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith("front.")},
        )


def close(got: Tensor, wanted: Tensor) -> bool:
    """Whether what reached the UNet is what was to reach it."""
    return torch.allclose(got.double(), wanted.double(), rtol=0, atol=ROUNDING * scale(wanted))


def scale(tensor: Tensor) -> float:
    """What rounding is relative to."""
    return max(1.0, float(tensor.abs().max()))


class FusedAgain:
    """Residuals that a host fused by the paper's rules, fused again by the formulas in float64.

    What reached the UNet is rounded too coarsely for the oracle's own tolerance: each pixel is
    first taken for the nearest of what it could be, and the oracle says which of them is right.
    """

    def __init__(self) -> None:
        self.kinds = {"one": 0, "several": 0, "ambiguous": 0}
        self.worst = 0.0

    def call(self, units: list[list[Tensor]], got: list[Tensor], delta: float) -> None:
        """All of a UNet call's: PixFusion's, and ChannelFusion's, which is the last."""
        *layers, last = zip(*units, strict=True)
        for here, tensor in zip(layers, got[:-1], strict=True):
            self.pixels(list(here), tensor, delta)
        self.channels(list(last), got[-1], delta)

    @staticmethod
    def could_be(units: list[Tensor], got: Tensor) -> bool:
        """Whether each pixel is a mean of some of the units."""
        return snap(got, units)[1] < ROUNDING * scale(torch.stack(units))

    def pixels(
        self, units: list[Tensor], got: Tensor, delta: float, limit: float | None = None
    ) -> None:
        """PixFusion's, [B, C, H, W] of each unit; `limit` is the rounding allowed."""
        limit = ROUNDING * scale(torch.stack(units)) if limit is None else limit
        snapped, error = snap(got, units)
        assert error < limit, f"a pixel is {error:.1e} from every mean of units"
        found = assert_pixels_follow_formula(units, delta, snapped, variance=False)
        self.kinds = {kind: count + found[kind] for kind, count in self.kinds.items()}
        self.worst = max(self.worst, error)

    def channels(
        self,
        units: list[Tensor],
        got: Tensor,
        delta: float,
        limit: float | None = None,
        where: Tensor | None = None,
    ) -> None:
        """ChannelFusion's, in the pixels `where` [B, 1, H, W]; None: in all."""
        wanted, unsure = channel_oracle(units, delta)
        asked = ~unsure[..., None, None].expand_as(wanted)
        asked = asked if where is None else asked & where
        assert bool(asked.any())
        error = float((got.double() - wanted).abs()[asked].max())
        assert error < (ROUNDING * scale(wanted) if limit is None else limit)
        self.worst = max(self.worst, error)

    def __str__(self) -> str:
        return (
            f"{self.kinds['one']} pixels of one unit, {self.kinds['several']} averaged, "
            f"{self.kinds['ambiguous']} too close to call; largest difference {self.worst:.1e}"
        )


class Found(NamedTuple):
    """A request as the host makes it, as we do, and how often the method's functions ran."""

    plain: Reply
    fused: Reply
    counts: dict[str, int]

    @property
    def note(self) -> str:
        """What we have to say about it."""
        return self.fused.note


def compared(host: Host, body: Json) -> Found:
    """Make a request without us, summed by us, and fused with a mask of everywhere.

    Our plain sum is the host's, bit by bit; the method changes the picture, which stays finite.
    """
    plain = host.generate(body)
    assert same(plain, host.generate(using(body, SUM))), "our plain sum is not the host's"
    host.state()
    fused = host.generate(using(body, EVERYWHERE))
    counts = host.state()["counts"]
    assert fused.enabled
    assert distance(plain, fused) > 0
    assert all(picture.std() > 1 for picture in fused.pictures)
    return Found(plain, fused, counts)

"""What is wanted of every request, whichever models and extensions take part in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from hosts.cases import EVERYWHERE, SUM, using
from hosts.client import Json, Reply, distance, same
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

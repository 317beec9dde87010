"""What is wanted of every request, whichever models and extensions take part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hosts.cases import EVERYWHERE, SUM, using
from hosts.client import Json, Reply, distance, same

if TYPE_CHECKING:
    from hosts.conftest import Host


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

"""Places on the tokens of an attention layer: what equation 9 of Cross-ControlNet asks of a mask.

`regional_attention.py` has the equation. Only torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import sent

# Features that mark places: one for each, one for the rest, one for rows without a usable mask, and
# what brings a head's size to a multiple of eight again.
_MARKS = 8
# What a key says to queries that must not see it, before the attention's scale: after it far below
# any other logit, so that the softmax gives exactly 0. In the range of half precision.
_UNSEEN = -3e4


class RowGroup(NamedTuple):
    """Batch rows that share their places (`rows` None: all of them), and the tokens of each.

    Attributes:
        rows: which.
        places: the tokens of each place, front to back.
        rest: the tokens of none. Rows without a usable mask are a group of their own, with no
            tokens anywhere.
    """

    rows: slice | Tensor | None
    places: tuple[Tensor, ...]
    rest: Tensor

    @property
    def is_usable(self) -> bool:
        """Whether there is anything to do."""
        return len(self.rest) > 0 or any(map(len, self.places))


class Regions:
    """Which tokens of each batch row are in which place, on one token grid.

    Kept by the session for as long as its masks stay the same; what a layer needs of it is made
    once for a device, without a wait for it.

    Args:
        places: boolean [B, N] on the CPU, Mf of one place; or [P, B, N] of several, which have no
            token in common.
        usable: boolean [B] on the CPU, the rows whose mask counts; None: all of them.

    Raises:
        TypeError: a tensor is not boolean.
        ValueError: the shapes do not fit, or a token is in two places.
    """

    def __init__(self, places: Tensor, usable: Tensor | None = None) -> None:
        if places.ndim == 2:
            places = places[None]
        if places.ndim != 3 or not len(places):
            raise ValueError(f"places must be [B, N] or [P, B, N], not {list(places.shape)}")
        check("places", places, torch.bool, places.shape)
        if usable is not None:
            check("usable", usable, torch.bool, places.shape[1:2])
        if len(places) > 1 and bool((places.sum(0) > 1).any()):
            raise ValueError("places have tokens in common")
        self.places = places
        self.usable = usable
        self._there: dict[torch.device, tuple[list[RowGroup], Tensor | None]] = {}
        self._marks: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def count(self) -> int:
        """P, how many places there are."""
        return len(self.places)

    @property
    def batch(self) -> int:
        """B, the rows."""
        return self.places.shape[1]

    @property
    def tokens(self) -> int:
        """N, the tokens of the grid."""
        return self.places.shape[2]

    @cached_property
    def everywhere(self) -> bool:
        """Whether all tokens of all rows are in the one place: K2 and V2 are not asked for."""
        usable = self.usable is None or bool(self.usable.all())
        return usable and self.count == 1 and bool(self.places.all())

    def groups(self, device: torch.device) -> list[RowGroup]:
        """The batch by rows with the same places; their indices are on `device`."""
        return self._on(device)[0]

    def in_order(self, guests: Sequence[Tensor], dim: int) -> Tensor:
        """Keys or values [B, ...] of the unit of each place, sorted along `dim`: [B, ..., P * N].

        First what nobody sees (a unit's tokens in another's place), then each place's own tokens
        of its own unit, then every unit's tokens of the rest.
        """
        together = guests[0] if len(guests) == 1 else torch.cat(tuple(guests), dim)
        order = self._on(together.device)[1]
        if order is None:
            return together
        if order.ndim == 1:
            return together.index_select(dim, order)
        shape = [1] * together.ndim
        shape[0], shape[dim] = order.shape
        return together.gather(dim, order.view(shape).expand_as(together))

    def marks(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Features that keep the places apart in one attention of `like`'s device and dtype.

        Returns:
            Of the queries [B or 1, 1, N, M]: which of P + 2 kinds they are, of a place, the rest,
            or without a usable mask. Of the keys [guests | K2] [B or 1, 1, (P + 1) N, M]: by kind
            0, or what hides them. M is a multiple of eight.
        """
        kind = like.device, like.dtype
        if kind not in self._marks:
            kinds, marks_of = (
                sent(t, like.device)
                for t in (self._kinds()[:, None], _marks_of(self.count, like.dtype))
            )
            marks = F.embedding(kinds, marks_of)
            self._marks[kind] = marks[:, :, : self.tokens], marks[:, :, self.tokens :]
        return self._marks[kind]

    def _kinds(self) -> Tensor:
        """Of queries and keys [guests | K2] the kind, a row of `_marks_of`: [B or 1, (P + 2) N]."""
        rows = slice(1) if len(self._members()) == 1 else slice(None)
        rest, label = self.count, self._labels()[rows]
        queries = label
        if self.usable is not None:
            queries = label.masked_fill(~self.usable[rows, None], rest + 1)
        first = rest + 2  # of the keys' kinds
        guests = [
            (label + first).masked_fill((label != n) & (label != rest), first + rest + 1)
            for n in range(self.count)
        ]
        own = torch.full_like(label, first + rest + 2)
        return torch.cat((queries, *guests, own), 1)

    def _labels(self) -> Tensor:
        """By token the place it is in, P for the rest: int32 [B, N]."""
        label = torch.full(self.places.shape[1:], self.count, dtype=torch.int32)
        for n, place in enumerate(self.places):
            label.masked_fill_(place, n)
        return label

    def _on(self, device: torch.device) -> tuple[list[RowGroup], Tensor | None]:
        if device not in self._there:
            self._there[device] = self._made_for(device)
        return self._there[device]

    def _made_for(self, device: torch.device) -> tuple[list[RowGroup], Tensor | None]:
        members = self._members()
        label = self._labels()
        # By token of a guest when its turn is.
        turns = [
            torch.where((label == n) | (label == self.count), label, -1) for n in range(self.count)
        ]
        order = torch.cat(turns, 1).argsort(dim=1, stable=True)
        chosen = order[:1] if len(members) == 1 else order
        sorted_already = torch.equal(chosen, torch.arange(chosen.shape[1]).expand_as(chosen))
        by_place = label.argsort(dim=1, stable=True)
        by_place = sent(by_place[:1] if len(members) == 1 else by_place, device)
        groups = []
        for rows in members:
            row = 0 if len(members) == 1 else rows[0]
            sizes = [*self.places[:, rows[0]].sum(1).tolist()]
            *places, rest = by_place[row].split([*sizes, self.tokens - sum(sizes)])
            if self.usable is not None and not self.usable[rows[0]]:
                places, rest = [part[:0] for part in places], rest[:0]
            groups.append(RowGroup(self._batch(rows, device), tuple(places), rest))
        if sorted_already:
            return groups, None
        return groups, sent(chosen[0] if len(members) == 1 else chosen, device)

    def _members(self) -> list[list[int]]:
        """The rows of each group, in the order of their first."""
        usable = [True] * self.batch if self.usable is None else self.usable.tolist()
        members: list[list[int]] = []
        for row in range(self.batch):
            for group in members:
                first = group[0]
                alike = usable[row] == usable[first]
                same = torch.equal(self.places[:, row], self.places[:, first])
                if alike and (not usable[row] or same):
                    group.append(row)
                    break
            else:
                members.append([row])
        return members

    def _batch(self, rows: Sequence[int], device: torch.device) -> slice | Tensor | None:
        if len(rows) == self.batch:
            return None
        chosen = batch_rows(rows)
        return sent(chosen, device) if isinstance(chosen, Tensor) else chosen


def _marks_of(count: int, dtype: torch.dtype) -> Tensor:
    """What marks each kind of query, and what each kind of key says to those: [2 P + 5, M].

    Of queries there is a kind for each of `count` places, for the rest, and without a usable mask.
    Of keys: a guest's in its own place, by place; in the rest; in another's place; K2.
    """
    queries = torch.eye(count + 2)
    keys = torch.full((count + 3, count + 2), _UNSEEN)
    keys[: count + 1].fill_diagonal_(0)
    keys[-1, count:] = 0
    return F.pad(torch.cat((queries, keys)), (0, -(count + 2) % _MARKS)).to(dtype)


def check(name: str, t: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    """Raise TypeError for another dtype and ValueError for another shape, naming the tensor."""
    if t.dtype is not dtype:
        raise TypeError(f"{name} must have dtype {dtype}, not {t.dtype}")
    if t.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(t.shape)}")


def at(t: Tensor, tokens: Tensor, dim: int) -> Tensor:
    """The `tokens` along `dim`; all of them are the tensor itself."""
    return t if len(tokens) == t.shape[dim] else t.index_select(dim, tokens)


def batch_rows(rows: Sequence[int]) -> slice | Tensor:
    """Rows of a batch as a slice where they are evenly spaced, so that taking them copies nothing.

    Else as indices on the CPU.
    """
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and list(rows) == list(range(rows[0], rows[-1] + 1, step)):
        return slice(rows[0], rows[-1] + 1, step)
    return torch.tensor(rows)

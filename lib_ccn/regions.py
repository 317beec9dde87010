"""Equation 9 of Cross-ControlNet (ICLR 2026) on bare tensors: attention whose rows have sides.

Because the mask is binary, foreground rows only need the foreground keys of K1, and the others
[K1[Mb] | K2]. Both forms are exact and need no attention mask, so that the quickest attention
functions stay in use:

* `attend_by_region`: with K1 sorted by side and put in front of K2, either is a stretch of one
  tensor. Two plain attentions on gathered queries are less work than one over everything.
* `attend_marked`: one attention over everything, in which further features of queries and keys keep
  the sides apart. More arithmetic and few launches, and no shape depends on the mask: an
  accelerator has its kernels and its memory ready, however many pictures with masks of their own.

Only torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# (query, key, value, scale=...), each [B, heads, tokens, d], to the result in the query's shape.
Attend = Callable[..., Tensor]
# Features that mark sides: three, and what brings a head's size to a multiple of eight again.
_MARKS = 8
# What a key says to queries that must not see it, before the attention's scale: after it far below
# any other logit, so that the softmax gives exactly 0. In the range of half precision.
_UNSEEN = -3e4


class RowGroup(NamedTuple):
    """Batch rows that share one mask (`rows` None: all of them) and the tokens on its two sides.

    Rows without a usable mask are a group of their own, with no tokens on either side.
    """

    rows: slice | Tensor | None
    foreground: Tensor
    background: Tensor


class Regions:
    """Which tokens of each batch row are foreground, on one token grid.

    Kept by the session for as long as its mask stays the same; what a layer needs of it is made
    once for a device, without a wait for it.

    Args:
        foreground: Mf, boolean [B, N] on the CPU.
        usable: boolean [B] on the CPU, the rows whose mask counts; None: all of them.

    Raises:
        TypeError: a tensor is not boolean.
        ValueError: the shapes do not fit.
    """

    def __init__(self, foreground: Tensor, usable: Tensor | None = None) -> None:
        if foreground.ndim != 2:
            raise ValueError(f"foreground must be [B, N], not {list(foreground.shape)}")
        check("foreground", foreground, torch.bool, foreground.shape)
        if usable is not None:
            check("usable", usable, torch.bool, foreground.shape[:1])
        self.foreground = foreground
        self.usable = usable
        self._there: dict[torch.device, tuple[list[RowGroup], Tensor | None]] = {}
        self._marks: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def tokens(self) -> int:
        """N, the tokens of the grid."""
        return self.foreground.shape[1]

    @cached_property
    def everywhere(self) -> bool:
        """Whether all tokens of all rows are foreground: nothing of K2 and V2 is asked for."""
        usable = self.usable is None or bool(self.usable.all())
        return usable and bool(self.foreground.all())

    def groups(self, device: torch.device) -> list[RowGroup]:
        """The batch by rows with the same mask; their indices are on `device`."""
        return self._on(device)[0]

    def in_order(self, t: Tensor, dim: int) -> Tensor:
        """A tensor [B, ...] whose tokens along `dim` are sorted: those of the foreground first."""
        order = self._on(t.device)[1]
        if order is None:
            return t
        if order.ndim == 1:
            return t.index_select(dim, order)
        shape = [1] * t.ndim
        shape[0], shape[dim] = order.shape
        return t.gather(dim, order.view(shape).expand_as(t))

    def marks(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Features that keep the sides apart in one attention of `like`'s device and dtype.

        Returns:
            Of the queries [B or 1, 1, N, 8]: which of three kinds they are, foreground, the rest,
            or without a usable mask. Of the keys [K1 | K2] [B or 1, 1, 2N, 8]: by kind 0, or what
            hides them.
        """
        kind = like.device, like.dtype
        if kind not in self._marks:
            marks = sent(self._made_marks().to(like.dtype), like.device)[:, None]
            self._marks[kind] = marks[:, :, : self.tokens], marks[:, :, self.tokens :]
        return self._marks[kind]

    def _made_marks(self) -> Tensor:
        rows = slice(1) if len(self._members()) == 1 else slice(None)
        fg = self.foreground[rows]
        usable = torch.ones(len(fg), 1) if self.usable is None else self.usable[rows, None].float()
        every, none = torch.ones(fg.shape), torch.zeros(fg.shape)
        queries = torch.stack((fg * usable, ~fg * usable, every - usable), -1)
        guests = torch.stack((~fg, fg, every), -1) * _UNSEEN
        own = torch.stack((every, none, none), -1) * _UNSEEN
        return F.pad(torch.cat((queries, guests, own), 1), (0, _MARKS - queries.shape[-1]))

    def _on(self, device: torch.device) -> tuple[list[RowGroup], Tensor | None]:
        if device not in self._there:
            self._there[device] = self._made_for(device)
        return self._there[device]

    def _made_for(self, device: torch.device) -> tuple[list[RowGroup], Tensor | None]:
        members = self._members()
        order = (~self.foreground).to(torch.uint8).argsort(dim=1, stable=True)
        order = sent(order[0] if len(members) == 1 else order, device)
        counts = self.foreground.sum(1).tolist()
        groups = []
        for rows in members:
            tokens = order if len(members) == 1 else order[rows[0]]
            count = counts[rows[0]]
            fg, bg = tokens.split((count, self.tokens - count))
            if self.usable is not None and not self.usable[rows[0]]:
                fg = bg = tokens[:0]
            groups.append(RowGroup(self._batch(rows, device), fg, bg))
        mixed = any(0 < len(fg) < self.tokens for _, fg, _ in groups)
        return groups, order if mixed else None

    def _members(self) -> list[list[int]]:
        """The rows of each group, in the order of their first."""
        usable = [True] * len(self.foreground) if self.usable is None else self.usable.tolist()
        members: list[list[int]] = []
        for row, mask in enumerate(self.foreground):
            for group in members:
                first = group[0]
                alike = usable[row] == usable[first]
                if alike and (not usable[row] or torch.equal(mask, self.foreground[first])):
                    group.append(row)
                    break
            else:
                members.append([row])
        return members

    def _batch(self, rows: Sequence[int], device: torch.device) -> slice | Tensor | None:
        if len(rows) == len(self.foreground):
            return None
        chosen = batch_rows(rows)
        return sent(chosen, device) if isinstance(chosen, Tensor) else chosen


def attend_by_region(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    regions: Regions,
    attend: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """Equation 9 for the queries of N image tokens, which may follow T tokens of text.

    Text rows attend to [text | K2] as ever, foreground rows to [K1[Mf] | text], the others to
    [K1[Mb] | text | K2]; rows without a usable mask to [text | K2].

    Args:
        query: [B, heads, T + N, d] of the background unit.
        key: [B, heads, N + T + N, d], `Regions.in_order` of the foreground unit's image keys in
            front of the background unit's own; `value` is alike.
        regions: N tokens for each of the B rows.
        attend: the attention function.

    Returns:
        The result in the shape and the memory layout of `query`.
    """
    text = query.shape[2] - regions.tokens
    out = None
    for group in regions.groups(query.device):
        if group.rows is None:
            return _attend_group(query, key, value, group, text, attend)
        q, k, v = (t[group.rows] for t in (query, key, value))
        part = _attend_group(q, k, v, group, text, attend)
        out = torch.empty_like(query, dtype=part.dtype) if out is None else out
        out[group.rows] = part
    return query if out is None else out


def attend_marked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    regions: Regions,
    attend: Attend = F.scaled_dot_product_attention,
    scale: float | None = None,
) -> Tensor:
    """Equation 9 as `attend_by_region` without text has it, in one attention.

    A query of a kind meets in the products with a key also what that key says to this kind: 0, or
    what makes the logit so small that the softmax gives exactly 0.

    Args:
        query: [B, heads, N, d] of the background unit.
        key: [B, heads, 2N, d], the foreground unit's keys, in their own order, in front of the
            background unit's; `value` is alike.
        regions: N tokens for each of the B rows.
        attend: the attention function.
        scale: of the logits; None: 1 / sqrt(d).

    Returns:
        The result in the shape of `query`.
    """
    size = query.shape[-1]
    of_queries, of_keys = (marks.expand(*query.shape[:2], -1, -1) for marks in regions.marks(query))
    out = attend(
        torch.cat((query, of_queries), -1),
        torch.cat((key, of_keys), -1),
        F.pad(value, (0, _MARKS)),  # as long as the others: else the quickest kernels decline
        scale=size**-0.5 if scale is None else scale,
    )
    return out[..., :size]


def _attend_group(
    q: Tensor, k: Tensor, v: Tensor, group: RowGroup, text: int, attend: Attend
) -> Tensor:
    _, fg, bg = group
    image, count = q.shape[2] - text, len(fg)

    def ask(queries: Tensor, first: int, last: int | None = None) -> Tensor:
        return attend(queries, k[:, :, first:last], v[:, :, first:last])

    if not count and not len(bg):
        return ask(q, image)
    if not text and not count:
        return attend(q, k, v)
    if not text and count == image:
        return ask(q, 0, image)
    (k_fg, k_bg), (v_fg, v_bg) = (t.split((count, t.shape[2] - count), 2) for t in (k, v))
    if text:
        k_fg, v_fg = (_with_text(t, count, image, text) for t in (k, v))
    own = q[:, :, text:] if text else q
    parts = []
    if count:
        parts.append((fg, attend(at(own, fg, 2), k_fg, v_fg)))
    if len(bg):
        parts.append((bg, attend(at(own, bg, 2), k_bg, v_bg)))
    out = torch.empty_like(q, dtype=parts[0][1].dtype)
    if text:
        out[:, :, :text] = ask(q[:, :, :text], image)
    for tokens, part in parts:
        put(out[:, :, text:] if text else out, tokens, part, 2)
    return out


def _with_text(t: Tensor, count: int, image: int, text: int) -> Tensor:
    """Of sorted keys or values in front of a unit's own, what foreground rows attend to."""
    if count == image:
        return t[:, :, : image + text]
    return torch.cat((t[:, :, :count], t[:, :, image : image + text]), 2)


def region_attention(
    q2: Tensor, k2: Tensor, v2: Tensor, k1: Tensor, v1: Tensor, foreground: Tensor, heads: int
) -> Tensor:
    """Equation 9, exactly: foreground rows attend K1[Mf], the others [K1[Mb] | K2].

    `q2`, `k2`, `v2` are the background unit's, `k1`, `v1` the foreground unit's, all [B, N, C],
    `foreground` boolean [B, N] is Mf. Returns [B, N, C].
    With fg the foreground fraction it costs 2 - 3 fg + 2 fg^2 plain attentions.

    Raises TypeError for a dtype and ValueError for a shape that does not fit, naming the argument.
    """
    if not q2.is_floating_point():
        raise TypeError(f"q2 must have a floating dtype, not {q2.dtype}")
    if q2.ndim != 3 or heads < 1 or q2.shape[-1] % heads:
        raise ValueError(
            f"q2 must be [B, N, C], C divisible by heads={heads}, not {list(q2.shape)}"
        )
    for name, t in {"q2": q2, "k2": k2, "v2": v2, "k1": k1, "v1": v1}.items():
        check(name, t, q2.dtype, q2.shape)
    check("foreground", foreground, torch.bool, q2.shape[:2])
    regions = Regions(foreground.cpu())
    keys, values = (
        torch.cat((regions.in_order(guest, 1), own), 1) for guest, own in ((k1, k2), (v1, v2))
    )
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q2, keys, values))
    return attend_by_region(q, k, v, regions).transpose(1, 2).flatten(2)


def check(name: str, t: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    """Raise TypeError for another dtype and ValueError for another shape, naming the tensor."""
    if t.dtype is not dtype:
        raise TypeError(f"{name} must have dtype {dtype}, not {t.dtype}")
    if t.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(t.shape)}")


def at(t: Tensor, tokens: Tensor, dim: int) -> Tensor:
    """The `tokens` along `dim`; all of them are the tensor itself."""
    return t if len(tokens) == t.shape[dim] else t.index_select(dim, tokens)


def put(out: Tensor, tokens: Tensor, part: Tensor, dim: int) -> None:
    """Write what `at` would take."""
    if len(tokens) == out.shape[dim]:
        out.copy_(part)
    else:
        out.index_copy_(dim, tokens, part)


def batch_rows(rows: Sequence[int]) -> slice | Tensor:
    """Rows of a batch as a slice where they are evenly spaced, so that taking them copies nothing.

    Else as indices on the CPU.
    """
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and list(rows) == list(range(rows[0], rows[-1] + 1, step)):
        return slice(rows[0], rows[-1] + 1, step)
    return torch.tensor(rows)


def sent(indices: Tensor, device: torch.device) -> Tensor:
    """On their way to the device; a copy from pageable memory would wait for the device's queue."""
    if device.type == "cuda":
        indices = indices.pin_memory()
    return indices.to(device, non_blocking=True)

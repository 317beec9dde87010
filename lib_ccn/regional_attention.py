"""Equation 9 of Cross-ControlNet (ICLR 2026) on bare tensors: attention whose rows have places.

Because the mask is binary, foreground rows only need the foreground keys of K1, and the others
[K1[Mb] | K2]. With several units in front **[choice]** rows in the place M_i of unit i attend to
K_i[M_i], those in none to K2 and every K_i outside all places; for one unit that is equation 9.
Both forms are exact and need no attention mask, so that the quickest attention functions stay in
use:

* `attend_by_region`: with the guests' keys sorted by place and put in front of K2, each needs a
  stretch of one tensor. Plain attentions on gathered queries are less work than one over all.
* `attend_marked`: one attention over everything, in which further features of queries and keys keep
  the places apart. More arithmetic and few launches, and no shape depends on the mask: an
  accelerator has its kernels and its memory ready, however many pictures with masks of their own.

Only torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .regions import Regions, RowGroup, at, check

# (query, key, value, scale=...), each [B, heads, tokens, d], to the result in the query's shape.
Attend = Callable[..., Tensor]


def attend_by_region(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    regions: Regions,
    attend: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """Equation 9 for the queries of N image tokens, which may follow T tokens of text.

    Text rows attend to [text | K2] as ever, rows of a place to [K1[Mf] | text], the others to
    [K1[Mb] | text | K2]; rows without a usable mask to [text | K2].

    Args:
        query: [B, heads, T + N, d] of the background unit.
        key: [B, heads, P * N + T + N, d], `Regions.in_order` of the image keys of the units in
            front, before the background unit's own; `value` is alike.
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
        key: [B, heads, (P + 1) N, d], the keys of the units in front, in their own order, before
            the background unit's; `value` is alike.
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
        # As long as the others, else the quickest kernels decline; what comes of it is cut off.
        torch.cat((value, of_keys), -1),
        scale=size**-0.5 if scale is None else scale,
    )
    return out[..., :size]


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
        torch.cat((regions.in_order([guest], 1), own), 1) for guest, own in ((k1, k2), (v1, v2))
    )
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q2, keys, values))
    return attend_by_region(q, k, v, regions).transpose(1, 2).flatten(2)


def _attend_group(
    q: Tensor, k: Tensor, v: Tensor, group: RowGroup, text: int, attend: Attend
) -> Tensor:
    image = q.shape[2] - text
    guests = k.shape[2] - text - image
    if not group.is_usable:
        return attend(q, k[:, :, guests:], v[:, :, guests:])
    own = q[:, :, text:] if text else q
    first = guests - sum(map(len, group.places)) - len(group.places) * len(group.rest)
    parts = []
    for tokens in group.places:
        last = first + len(tokens)
        if len(tokens):
            keys, values = (_with_text(t, first, last, guests, text) for t in (k, v))
            parts.append((tokens, attend(at(own, tokens, 2), keys, values)))
        first = last
    if len(group.rest):
        rest = attend(at(own, group.rest, 2), k[:, :, first:], v[:, :, first:])
        parts.append((group.rest, rest))
    if not text and len(parts) == 1:
        return parts[0][1]
    out = torch.empty_like(q, dtype=parts[0][1].dtype)
    if text:
        out[:, :, :text] = attend(q[:, :, :text], k[:, :, guests:], v[:, :, guests:])
    for tokens, part in parts:
        _put(out[:, :, text:] if text else out, tokens, part, 2)
    return out


def _with_text(t: Tensor, first: int, last: int, guests: int, text: int) -> Tensor:
    """Of sorted keys or values in front of a unit's own, what the rows of a place attend to."""
    if last == guests or not text:
        return t[:, :, first : last + text]
    return torch.cat((t[:, :, first:last], t[:, :, guests : guests + text]), 2)


def _put(out: Tensor, tokens: Tensor, part: Tensor, dim: int) -> None:
    """Write what `at` would take."""
    if len(tokens) == out.shape[dim]:
        out.copy_(part)
    else:
        out.index_copy_(dim, tokens, part)

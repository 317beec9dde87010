"""The foreground mask (Cross-ControlNet, ICLR 2026, section 3.3) and its other sources.

The backbone's cross-attention says where a word of the prompt is being drawn; a threshold on that
map is the mask of the next step. A painted image or the condition's own silhouette can stand in.
"""

import threading
import time
from collections.abc import Container, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .hooks import compiled_within, held, why_unheard
from .regions import batch_rows, sent
from .residuals import smooth

# A map whose range is below this part of its largest value says nothing about place.
_FLAT = 1e-5
# Silhouettes: longest side worked at, colour distance of a drawn pixel, gap closed (part of the
# longest side, each way), and the stretch of the picture's edge taken for a cut through an object.
_WORKING_SIZE = 256
_DRAWN = 0.1
_GAP = 0.015
_CUT = 0.25


class Word(Protocol):
    """A word of the prompt."""

    @property
    def positions(self) -> Sequence[int]:
        """Where its tokens stand in the text context."""


WordT = TypeVar("WordT", bound=Word)


class _Kind(NamedTuple):
    """What layers that are computed together have in common."""

    heads: int
    scale: float
    query: torch.Size
    key: torch.Size
    dtype: torch.dtype
    device: torch.device


class CrossAttentionRecorder:
    """Mean cross-attention probabilities of a UNet's quarter-resolution layers.

    Every `attn2` is hooked at its `to_q` and `to_k`, whose outputs the host computes anyway, from
    `begin_call` to `pause` and for the thread that began the call: a UNet may be shared. A layer
    counts when its image tokens are as many as the grid (ceil(h/4), ceil(w/4)) of the latent has.
    Layers of one shape are computed together, at the end of a call or when what they take up
    reaches a bound, see `at_a_time`.

    Calls of one step are averaged. A call whose maps have another shape (other rows, another text
    length, another latent size) starts the average anew: the latest shape wins.

    Attributes:
        layers: the attention modules that can be heard.
        unheard: why others cannot be.
        tokens: how many image tokens the layers had that were asked so far, to say which maps
            there are where none has the grid's.
        seconds: that recording took so far; on an accelerator only to ask it for the maps.
    """

    def __init__(self, unet: nn.Module, reduction: int = 4) -> None:
        compiled = compiled_within(unet)
        reasons = {module: self.why_unheard(module, compiled) for module in self.attentions(unet)}
        self.layers = [module for module, reason in reasons.items() if not reason]
        self.unheard = next(filter(None, reasons.values()), "")
        self.reduction = reduction
        self.error: Exception | None = None
        self.tokens: set[int] = set()
        self.seconds = 0.0
        self._attached = False
        self._handles: list[RemovableHandle] = []
        self._thread = 0
        self._grid: tuple[int, int] | None = None
        self._rows: Tensor | slice = slice(0)
        self._batch = 0
        self._query: tuple[nn.Module, Tensor] | None = None
        self._pending: dict[_Kind, list[tuple[Tensor, Tensor]]] = {}
        self._elements = 0
        self._sum: Tensor | None = None
        self._sum_grid = (0, 0)
        self._count = 0

    def attentions(self, network: nn.Module) -> list[nn.Module]:
        """The cross-attentions of a network."""
        return [
            module
            for name, module in network.named_modules()
            if name.rpartition(".")[2] == "attn2" and hasattr(module, "to_k")
        ]

    def why_unheard(self, attention: nn.Module, compiled: Container[nn.Module]) -> str:
        """Why an attention cannot be read; "" where it can."""
        return why_unheard(attention, compiled)

    @property
    def recording(self) -> bool:
        """Whether a UNet call would be recorded now."""
        return self._grid is not None and self._attached

    def attach(self) -> None:
        """From now on calls are recorded as they are begun."""
        self._attached = True

    def detach(self) -> None:
        """Remove the hooks and forget everything recorded; may be called at any time."""
        self._attached = False
        self._pending.clear()
        self.pause()
        self._sum, self._count = None, 0

    def __enter__(self) -> "CrossAttentionRecorder":
        self.attach()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.detach()

    def begin_call(
        self, latent_size: tuple[int, int], rows: Tensor | Sequence[int] | slice
    ) -> None:
        """Record the coming UNet call at `latent_size` (h, w) for the conditional `rows`."""
        self._compute()
        self._query, self._rows, self._batch = None, slice(0), 0
        if isinstance(rows, slice):
            self._rows = rows
        elif len(rows):
            chosen = rows.tolist() if isinstance(rows, Tensor) else rows
            self._rows, self._batch = batch_rows(chosen), max(chosen) + 1
        self._grid = reduced_grid(latent_size, self.reduction)
        self._thread = threading.get_ident()
        if self._attached and not self._handles:
            self._handles = [handle for layer in self.layers for handle in self.hooks_on(layer)]

    def pause(self) -> None:
        """Record nothing until the next `begin_call`; what was recorded stays."""
        self._compute()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._grid = self._query = None

    def hooks_on(self, layer: nn.Module) -> list[RemovableHandle]:
        """Listen to a layer's queries and keys."""
        modules: Any = layer
        return [
            modules.to_q.register_forward_hook(partial(self._on_query, layer)),
            modules.to_k.register_forward_hook(partial(self._on_key, layer)),
        ]

    def take(self) -> Tensor | None:
        """Mean probabilities [rows, T, H4, W4] in float32 since the last `take`, or None."""
        self._compute()
        total, count, grid = self._sum, self._count, self._sum_grid
        self._sum, self._count = None, 0
        return None if total is None else (total / count).mT.unflatten(-1, grid)

    @property
    def _here(self) -> bool:
        """Whether what is heard now belongs to the call that is recorded."""
        return threading.get_ident() == self._thread

    def _on_query(self, layer: nn.Module, _to_q: nn.Module, _args: Any, query: Any) -> None:
        grid = self._grid
        if self._here and grid is not None and getattr(query, "ndim", 0) == 3:
            self.tokens.add(query.shape[1])
            self._query = (layer, query) if query.shape[1] == grid[0] * grid[1] else None

    def _on_key(self, layer: nn.Module, _to_k: nn.Module, _args: Any, key: Any) -> None:
        if not self._here or self._query is None or self._query[0] is not layer:
            return
        query, self._query = self._query[1], None
        try:
            self._keep(layer, query, key)
        except Exception as error:  # the user's picture goes on; the session reads `.error`
            self._fail(error)
        if self._elements > at_a_time(key.device):
            self._compute()

    def _keep(self, layer: Any, query: Tensor, key: Tensor) -> None:
        if len(query) < self._batch:  # on CUDA a wrong index would be fatal
            raise IndexError(f"rows up to {self._batch - 1} in a batch of {len(query)}")
        rows = self._rows
        shown = len(range(len(query))[rows]) if isinstance(rows, slice) else len(rows)
        if not shown:
            return
        heads = int(layer.heads)
        width = query.shape[2:].numel() // heads
        scale = float(getattr(layer, "scale", 0.0) or width**-0.5)
        kind = _Kind(heads, scale, query.shape, key.shape, query.dtype, query.device)
        self._pending.setdefault(kind, []).append((held(query), held(key)))
        self._elements += query.numel() + shown * heads * query.shape[1] * key.shape[1]

    def _compute(self) -> None:
        """What is pending becomes part of the average."""
        pending, self._pending, self._elements = self._pending, {}, 0
        if not pending:
            return
        began = time.perf_counter()
        try:
            for kind in list(pending):
                self._add(kind, pending.pop(kind))
        except Exception as error:
            self._fail(error)
        self.seconds += time.perf_counter() - began

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._pending.clear()
        self.pause()

    @torch.no_grad()
    def _add(self, kind: _Kind, layers: list[tuple[Tensor, Tensor]]) -> None:
        if isinstance(self._rows, Tensor):
            self._rows = sent(self._rows, kind.device)
        query, key = (
            (torch.stack(of_all) if len(of_all) > 1 else of_all[0][None])[:, self._rows]
            for of_all in zip(*layers, strict=True)
        )
        count = len(layers)
        layers.clear()  # what the host no longer needs is freed now
        query, key = self.placed(query, key)
        heads = kind.heads
        query, key = (
            t.unflatten(-1, (heads, -1)).transpose(2, 3).flatten(0, 2) for t in (query, key)
        )
        weights = torch.baddbmm(query.new_empty(()), query, key.mT, beta=0, alpha=kind.scale)
        del query, key
        weights = weights.softmax(-1, dtype=torch.float32)
        maps = weights.unflatten(0, (count, -1, heads)).sum((0, 2))
        if self._sum is None or self._sum.shape != maps.shape or self._sum_grid != self._grid:
            assert self._grid is not None
            self._sum, self._sum_grid, self._count = maps, self._grid, 0
        else:
            self._sum = self._sum + maps
        self._count += count * heads

    def placed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [layers, rows, tokens, C] as the layers compare them."""
        return query, key


def at_a_time(device: torch.device) -> int:
    """How many elements of queries and of attention may be kept to be computed together.

    A launch for each layer would cost an accelerator more than its arithmetic; a processor has
    the better of what is still in its cache.
    """
    return 0 if device.type == "cpu" else 2**26


def word_map(maps: Tensor, positions: Sequence[int]) -> Tensor:
    """Average `maps` [rows, T, H, W] over a word's token `positions`: [rows, H, W].

    Raises ValueError without positions or with one outside 0..T-1.
    """
    tokens = maps.shape[1]
    if not positions or not all(0 <= p < tokens for p in positions):
        raise ValueError(f"positions must lie in 0..{tokens - 1}, got {list(positions)}")
    return maps[:, list(positions)].mean(1)


def scaled_map(word_map: Tensor) -> tuple[Tensor, Tensor]:
    """A word's map [rows, H, W] smoothed with G, zero padded, and scaled to [0, 1] by its extremes.

    The second result, `usable` [rows], is False where the map is constant or not finite: there
    the first is all zeros.
    """
    maps = word_map.float()
    usable = _informative(maps)
    maps = smooth(maps)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(usable[:, None, None], (maps - low) / (high - low), 0.0), usable


def foreground_mask(word_map: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Threshold a word's map [rows, H, W]: a boolean mask [rows, H, W] and `usable` [rows].

    Foreground is at or above the threshold in `scaled_map`, so 0 takes all and 1 the maximum
    alone. A row that is not usable has a mask that is all False.
    """
    scaled, usable = scaled_map(word_map)
    return cut_map(scaled, usable, threshold), usable


def cut_map(scaled: Tensor, usable: Tensor, threshold: float) -> Tensor:
    """The mask [rows, H, W] of what `scaled_map` returned; see `foreground_mask`."""
    return (scaled >= threshold) & usable[:, None, None]


def resize_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A mask [rows, H, W] on a layer's tokens: boolean [rows, h * w], row-major.

    A token is foreground when at least half of its area is; a larger grid repeats the pixels.
    """
    area = F.adaptive_avg_pool2d(mask[:, None].float(), grid)
    return (area >= 0.5).flatten(1)


def reduced_grid(size: tuple[int, int], reduction: int) -> tuple[int, int]:
    """The grid (h, w) of a `size` divided by `reduction`, rounded up."""
    return -(-size[0] // reduction), -(-size[1] // reduction)


def token_grid(latent_size: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """The grid (h, w) with that many `tokens` after some halvings of the latent, each rounded up.

    None when no number of halvings gives it.
    """
    h, w = latent_size
    while h * w > tokens and h * w > 1:
        h, w = -(-h // 2), -(-w // 2)
    return (h, w) if h * w == tokens else None


def word_scores(
    maps: Tensor, words: Sequence[WordT], deviation: Tensor
) -> list[tuple[WordT, float]]:
    """How well each word's smoothed map agrees with a unit's deviation, the best first.

    `maps` [rows, T, H, W]; `deviation` [rows, h, w] is the unit's smoothed deviation map, brought
    to the maps' size. The score is Pearson's correlation, averaged over rows where both vary; of
    equal ones the earlier word comes first. Words without a positive score are left out: they mark
    another place.
    """
    height, width = maps.shape[-2:]
    target = F.adaptive_avg_pool2d(deviation.float()[:, None], (height, width))[:, 0]
    found = []
    for word in words:
        if not word.positions:
            continue
        candidate = word_map(maps.float(), word.positions)
        usable = _informative(candidate) & _informative(target)
        score = _correlation(smooth(candidate), target)[usable].mean().item()
        if score > 0:
            found.append((word, score))
    return sorted(found, key=lambda one: -one[1])


def assigned_words(
    scores: Sequence[Sequence[tuple[WordT, float]]],
) -> list[WordT | None]:
    """A word for each of several units, none twice, with the greatest sum of scores.

    `scores` are each unit's from `word_scores`. A unit for which no word is left has None.
    """
    # With as many words as there are units, one is left for everybody.
    choices = [list(own[: len(scores)]) for own in scores]

    def best(unit: int, taken: frozenset[WordT]) -> tuple[float, list[WordT | None]]:
        if unit == len(choices):
            return 0.0, []
        total, rest = best(unit + 1, taken)
        found: tuple[float, list[WordT | None]] = (total, [None, *rest])
        for word, score in reversed(choices[unit]):
            if word not in taken:
                total, rest = best(unit + 1, taken | {word})
                if total + score >= found[0]:
                    found = total + score, [word, *rest]
        return found

    return best(0, frozenset())[1]


def silhouette(image: Tensor) -> Tensor:
    """What a condition image [B, C, H, W] in [0, 1] shows, filled: boolean [B, H, W].

    Drawn is what differs from the background, the median colour of the picture's edge. An outline
    is filled, gaps of about 3 % of the longer side in it included; open strokes stay strokes. An
    outline cut off by the edge of the picture is closed along that edge.
    """
    edge = torch.cat((image[..., 0], image[..., -1], image[..., 0, :], image[..., -1, :]), -1)
    background = edge.float().median(-1).values[..., None, None]
    drawn = ((image.float() - background).abs().amax(1, keepdim=True) > _DRAWN).float()
    height, width = image.shape[-2:]
    scale = min(1.0, _WORKING_SIZE / max(height, width))
    small = F.adaptive_max_pool2d(drawn, (max(1, round(height * scale)), round(width * scale) or 1))
    reach = max(1, round(_GAP * max(small.shape[-2:])))
    margin = 2 * reach + 1
    closed = _grow(F.pad(_close_edge(small), [margin] * 4), reach)
    filled = 1 - _grow(_flood(closed), reach)[..., margin:-margin, margin:-margin]
    return F.interpolate(filled, size=(height, width), mode="nearest")[:, 0] > 0.5


def image_mask(image: Tensor) -> Tensor:
    """A painted mask [B, C, H, W] in [0, 1], C = 1..4, as booleans [B, H, W].

    White is foreground (luminance above one half). Where a picture has an alpha channel that is
    not opaque throughout, alpha decides instead.
    """
    image = image.float()
    channels = image.shape[1]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"image must have 1 to 4 channels, not {channels}")
    colour = image[:, :3] if channels > 2 else image[:, :1].expand(-1, 3, -1, -1)
    mask = torch.einsum("bchw,c->bhw", colour, image.new_tensor([0.299, 0.587, 0.114])) > 0.5
    if channels in (2, 4):
        alpha = image[:, -1] > 0.5
        mask = torch.where(alpha.all(-1).all(-1)[:, None, None], mask, alpha)
    return mask


def _informative(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    return torch.isfinite(high - low) & (high - low > _FLAT * torch.maximum(high.abs(), low.abs()))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (t.flatten(1) - t.flatten(1).mean(1, keepdim=True) for t in (a, b))
    return F.cosine_similarity(a, b, dim=1, eps=1e-30)


def _grow(mask: Tensor, reach: int) -> Tensor:
    return F.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)


def _flood(walls: Tensor) -> Tensor:
    """Everything that the picture's edge reaches without crossing `walls`."""
    free = 1 - walls
    outside = torch.zeros_like(walls)
    outside[..., 0, :] = outside[..., -1, :] = outside[..., :, 0] = outside[..., :, -1] = 1
    outside *= free
    while True:
        before = outside
        for _ in range(16):
            outside = _grow(outside, 1) * free
        if torch.equal(before, outside):
            return outside


def _close_edge(drawn: Tensor) -> Tensor:
    """Draw along the picture's edge where it cuts through an object: short runs between strokes."""
    height, width = drawn.shape[-2:]
    reach = round(_CUT * max(height, width) / 2)
    if min(height, width) < 3 or not reach:
        return drawn
    across, down = range(width), range(1, height - 1)
    ys = [0] * width + [*down] + [height - 1] * width + [*reversed(down)]
    xs = [*across] + [width - 1] * len(down) + [*reversed(across)] + [0] * len(down)
    ring = F.pad(drawn[:, :, ys, xs], [2 * reach] * 2, mode="circular")
    window = 2 * reach + 1
    ring = -F.max_pool1d(-F.max_pool1d(ring[:, 0], window, 1), window, 1)
    drawn = drawn.clone()
    drawn[:, 0, ys, xs] = ring
    return drawn

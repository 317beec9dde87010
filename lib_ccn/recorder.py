"""What a UNet's cross-attention looks at, recorded while the host computes it.

Cross-ControlNet (ICLR 2026), section 3.3: the maps that `foreground.py` makes a mask of.
"""

import threading
import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import devices
from .foreground import reduced_grid
from .hooks import compiled_within, held, listen, why_unheard
from .regions import batch_rows


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
        complete: called, where a copy to the CPU can be on its way while the network goes on, when
            as many layers were recorded in a call as in the one before: `mean` is then the call's.
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
        self.complete: Callable[[], None] | None = None
        self.tokens: set[int] = set()
        self.seconds = 0.0
        self._attached = False
        self._undo = ExitStack()
        self._listening = False
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
        self._mean: Tensor | None = None
        # Layers that were kept in this call, and in the one before.
        self._kept = self._kept_before = 0

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
        self._sum, self._count, self._mean = None, 0, None

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
        self._kept, self._kept_before = 0, self._kept or self._kept_before
        if isinstance(rows, slice):
            self._rows = rows
        elif len(rows):
            chosen = rows.tolist() if isinstance(rows, Tensor) else rows
            self._rows, self._batch = batch_rows(chosen), max(chosen) + 1
        self._grid = reduced_grid(latent_size, self.reduction)
        self._thread = threading.get_ident()
        if self._attached and not self._listening:
            self._listening = True
            self.set_hooks(self._undo)

    def pause(self) -> None:
        """Record nothing until the next `begin_call`; what was recorded stays."""
        self._compute()
        self._undo.close()
        self._listening = False
        self._grid = self._query = None

    def set_hooks(self, undo: ExitStack) -> None:
        """Hear the layers' queries and keys until undone."""
        modules: list[Any] = self.layers
        hooks = [(layer.to_q, partial(self._on_query, layer)) for layer in modules]
        undo.callback(listen([*hooks, *((m.to_k, partial(self._on_key, m)) for m in modules)]))

    def take(self) -> Tensor | None:
        """Mean probabilities [rows, T, H4, W4] in float32 since the last `take`, or None."""
        self._compute()
        mean = self.mean()
        self._sum, self._count, self._mean = None, 0, None
        return mean

    def mean(self) -> Tensor | None:
        """What `take` would give of the layers that are computed so far."""
        if self._mean is None and self._sum is not None:
            self._mean = (self._sum / self._count).mT.unflatten(-1, self._sum_grid)
        return self._mean

    @property
    def _here(self) -> bool:
        """Whether what is heard now belongs to the call that is recorded."""
        return threading.get_ident() == self._thread

    def _on_query(self, layer: nn.Module, _to_q: nn.Module, _args: Any, query: Any) -> None:
        grid = self._grid
        if grid is not None and self._here and getattr(query, "ndim", 0) == 3:
            tokens = query.shape[1]
            self.tokens.add(tokens)
            self._query = (layer, query) if tokens == grid[0] * grid[1] else None

    def _on_key(self, layer: nn.Module, _to_k: nn.Module, _args: Any, key: Any) -> None:
        if self._query is None or self._query[0] is not layer or not self._here:
            return
        query, self._query = self._query[1], None
        try:
            self._keep(layer, query, key)
            done = self._kept == self._kept_before and devices.can_go_on(key.device)
            if done or self._elements > at_a_time(key.device):
                self._compute()
            if done and self.complete is not None:
                self.complete()
        except Exception as error:  # the user's picture goes on; the session reads `.error`
            self._fail(error)

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
        self._kept += 1
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
            self._rows = devices.sent(self._rows, kind.device)
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
        self._mean = None

    def placed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [layers, rows, tokens, C] as the layers compare them."""
        return query, key


def at_a_time(device: torch.device) -> int:
    """How many elements of queries and of attention may be kept to be computed together.

    A launch for each layer would cost an accelerator more than its arithmetic; a processor has
    the better of what is still in its cache.
    """
    return 0 if devices.is_cpu(device) else 2**26

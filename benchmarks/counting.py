"""What a step would ask of an accelerator, counted without one.

Tensors on torch's device "meta" have shapes and no data: they stand for the accelerator's here.
Every operation on one is counted as torch dispatches it, views and the parts of attention included;
launches are those that are no views, with attention as the one kernel that it is on a GPU. Every
place where the program would wait for the device is counted too. Such a question is answered with
an invented value, so that the step goes on as it would there.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_COPIES = (aten._to_copy.default, aten.copy_.default)
_INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
# The size of their result is known to the device alone.
_SIZES = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
)
# They copy values of the program's to the device, inside torch where no operation is seen.
_MADE = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
_ITEMS = (Tensor.__getitem__, Tensor.__setitem__)


@dataclass
class Counts:
    """Operations on the device, which of them are launches, and waits for it, by name."""

    operations: collections.Counter[str] = field(default_factory=collections.Counter)
    launches: collections.Counter[str] = field(default_factory=collections.Counter)
    waits: collections.Counter[str] = field(default_factory=collections.Counter)
    in_attention: bool = False

    def dispatched(self, func: Any) -> None:
        """An operation on the device."""
        self.operations[str(func)] += 1
        if not self.in_attention and not _is_view(func):
            self.launches[str(func)] += 1


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is done inside.

    A wait is a value or a size that the program asks for, a copy from the device, and a copy to it
    that is not `non_blocking`, as an index that stands on the CPU needs one too.
    """
    counts = Counts()
    with _Functions(counts), _Operations(counts):
        yield counts


def count(step: Callable[[], object]) -> Counts:
    """Call `step` once and count."""
    with counting() as counts:
        step()
    return counts


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        given = [*_tensors(args), *_tensors(kwargs.values())]
        here = any(_on_device(t) for t in given)
        waits = here and self._waits(func, args, kwargs)
        if func in _COPIES and not here:
            to_device = torch.device(kwargs.get("device") or "cpu").type == "meta"
            blocking = not kwargs.get("non_blocking")
            waits = to_device and blocking and given[0].numel() > 0
        if waits:
            self.counts.waits[name] += 1
        if waits and _leaves(func, args, kwargs):
            self.counts.dispatched(func)
            return _answer(func, args, kwargs)
        result = func(*args, **kwargs)
        made = result if isinstance(result, (tuple, list)) else (result,)
        if here or any(_on_device(t) for t in _tensors(made)):
            self.counts.dispatched(func)
        return result

    @staticmethod
    def _waits(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Whether an operation with a tensor of the device's makes the program wait."""
        if func in _SIZES or _leaves(func, args, kwargs):
            return True
        if func is aten.copy_.default and not _on_device(args[1]):
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            return blocking and args[1].numel() > 0
        if func in _INDEXING:
            indices = [i for i in args[1] if i is not None and i.numel()]
            return any(not _on_device(i) or i.dtype is torch.bool for i in indices)
        return False


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and _on_device(args[0]):
            self.counts.launches["attention"] += not self.counts.in_attention
            before, self.counts.in_attention = self.counts.in_attention, True
            try:
                return func(*args, **(kwargs or {}))
            finally:
                self.counts.in_attention = before
        result = func(*args, **(kwargs or {}))
        waits = 0
        if func in _MADE and _on_device(result) and result.numel():
            waits = int(not isinstance(args[-1], Tensor))
        elif func in _ITEMS and _on_device(args[0]):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            waits = sum(isinstance(place, list) for place in places)
        if waits:
            self.counts.waits[func.__name__] += waits
        return result


@functools.cache
def _is_view(func: Any) -> bool:
    aliases = [argument.alias_info for argument in func._schema.arguments]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _leaves(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the device's values come to the program, a copy that it waits for later included."""
    if func in (aten._local_scalar_dense.default, aten.equal.default):
        return True
    if func is aten.copy_.default:
        return _on_device(args[1]) and not _on_device(args[0])
    target = kwargs.get("device")
    return (
        func is aten._to_copy.default and target is not None and torch.device(target).type == "cpu"
    )


def _answer(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Something that the device could have said; a map's upper half is stronger."""
    source = args[0]
    if func is aten.equal.default:
        return True
    if func is aten._local_scalar_dense.default:
        return True if source.dtype is torch.bool else source.new_ones((), device="cpu").item()
    if func is aten.copy_.default:
        return source.copy_(_invented(source.shape, source.dtype))
    return _invented(source.shape, kwargs.get("dtype") or source.dtype)


def _invented(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Maps [pictures, ..., H, W] from 0 to 1, other in each picture; of one dimension, ones."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=dtype)
    places = shape[-2] * shape[-1] if len(shape) > 2 else shape[-1]
    ramp = torch.linspace(1, 0, places)
    maps = torch.stack([ramp.roll(n * places // 7) for n in range(shape.numel() // places)])
    return (maps >= 0.5 if dtype is torch.bool else maps).to(dtype).reshape(shape)


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)

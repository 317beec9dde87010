"""ControlNets as a linked list in front of a network, as Forge's family and ComfyUI have them.

`previous_controlnet` is the one that was added before; `get_control` asks it first, and adds what
it gets to its own residuals: lists of tensors by "input", "middle" and "output". Everything a unit
does to its own residuals (strength, range of steps, masks, weighting) happens in its `get_control`
and stays the host's. Here the units are asked one by one, without their predecessors, and fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..session import Session
from ..units import Call, Unit

Control = Mapping[str, Any]  # what `get_control` gives

_KEYS = ("input", "middle", "output")
_IN_ORDER = ("input", "output", "middle")  # the last one is last in its network
_ALWAYS = (0.0, 1.0)  # as shares of the sampling


def in_order(newest: Any, ends: Callable[[Any], bool] = lambda control: False) -> list[Any]:
    """The ControlNets of a list in the order in which they were added, after one that `ends` it."""
    found = []
    while newest is not None and not ends(newest):
        found.append(newest)
        newest = newest.previous_controlnet
    return found[::-1]


def is_fusable(control: Any) -> bool:
    """Whether this is a ControlNet whose residuals are maps, or tokens of an image.

    A ControlLora makes its model when the run begins; it is one by its class. A globally pooled
    unit (shuffle) says the same everywhere, so that there is nothing to choose between; one of
    weight 0 says nothing.
    """
    if getattr(control, "global_average_pooling", False) or control.strength == 0:
        return False
    model = getattr(control, "control_model", None)
    if model is None:
        return any(base.__name__ == "ControlLora" for base in type(control).__mro__)
    if hasattr(model, "zero_convs") and hasattr(model, "middle_block_out"):
        return True
    return hasattr(model, "controlnet_blocks")  # of a transformer: FLUX, SD 3.5, Qwen-Image


def unit_of(control: Any, name: str, number: int) -> Unit:
    """The unit that a ControlNet is."""
    module = getattr(control, "control_model", None)
    if not isinstance(module, torch.nn.Module):
        module = torch.nn.Module()
    hint = control.cond_hint_original
    condition = hint if isinstance(hint, Tensor) and hint.ndim == 4 else None
    return Unit(module, name, is_fusable(control), condition, number=number)


@contextmanager
def without_predecessors(control: Any) -> Iterator[None]:
    """Inside, a ControlNet answers for itself alone."""
    previous = control.previous_controlnet
    control.previous_controlnet = None
    try:
        yield
    finally:
        control.previous_controlnet = previous


def fused(
    session: Session,
    call: Call,
    controls: Mapping[Unit, Any],
    t: Tensor,
    ask: Callable[[Any], Control | None],
    grid: tuple[int, int] | None = None,
) -> dict[str, list[Any]] | None:
    """The residuals of all units as one: a fresh dict of fresh lists, as the host merges them.

    Args:
        session: of the run.
        call: the network's, that is prepared.
        controls: the host's ControlNet of each unit, in the order in which they were added.
        t: [rows], the noise level, by which a unit knows whether it is in range.
        ask: what a ControlNet says for itself alone.
        grid: rows and columns of the image's tokens, where residuals are tokens [B, tokens, C].
    """
    active = [unit for unit, control in controls.items() if not _out_of_range(control, t)]
    session.begin_call(call, active)
    results: dict[Unit, Control] = {}
    for unit in session.running_order(list(controls)):
        result = session.run(unit, partial(ask, controls[unit]))
        if result is not None:
            results[unit] = result
    said = {unit: results[unit] for unit in controls if unit in results}
    fusable = {unit: result for unit, result in said.items() if unit.eligible}
    common = _in_common(fusable, grid) if len(fusable) > 1 else _Common({}, {})
    maps = session.fuse(common.maps if common.places else {})
    if not common.places or session.settings.fusion == "sum":
        return total(said.values())
    whole = [as_tokens(made) if grid else made for made in maps]
    ours = {
        key: [
            whole[common.places[key, n]] if (key, n) in common.places else None
            for n in range(max(len(result.get(key) or ()) for result in fusable.values()))
        ]
        for key in _KEYS
    }
    left = [_without(result, common.places) for result in fusable.values()]
    others = [result for unit, result in said.items() if unit not in fusable]
    return total([ours, *filter(None, left), *others])


class _Common(NamedTuple):
    """What units have in common.

    Attributes:
        maps: each unit's residuals [B, C, h, w], the network's last one last.
        places: which of them is at a place of a host's lists. Transformers have one at several.
    """

    maps: dict[Unit, list[Tensor]]
    places: dict[tuple[str, int], int]


def _in_common(results: Mapping[Unit, Control], grid: tuple[int, int] | None) -> _Common:
    """The residuals that all units have and that fit each other, each of them once."""
    maps: dict[Unit, list[Tensor]] = {unit: [] for unit in results}
    places: dict[tuple[str, int], int] = {}
    known: dict[tuple[int, ...], int] = {}
    if grid is None and not all(_is_unets(result) for result in results.values()):
        return _Common({}, {})
    for key in _IN_ORDER:
        lists = [result.get(key) or () for result in results.values()]
        for n, tensors in enumerate(zip(*lists, strict=False)):
            made = _maps(tensors, grid)
            if len({one.shape for one in made}) != 1:
                continue
            objects = tuple(map(id, tensors))
            if objects not in known:
                known[objects] = len(known)
                for unit, one in zip(results, made, strict=True):
                    maps[unit].append(one)
            places[key, n] = known[objects]
    return _Common(maps, places)


def _maps(tensors: Iterable[Any], grid: tuple[int, int] | None) -> list[Tensor]:
    """What units say at one place; nothing where one of them says nothing of the image there."""
    made = [tensor if grid is None else as_map(tensor, grid) for tensor in tensors]
    return [] if any(one is None for one in made) else [one for one in made if one is not None]


def _is_unets(result: Control) -> bool:
    """Whether a unit says what a ControlNet of UNet shape does; T2I-Adapters use "input"."""
    tensors = [*result.get("output", []), *result.get("middle", [])]
    maps = all(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in tensors)
    return maps and not result.get("input") and len(result.get("middle", [])) == 1


def as_map(tokens: Any, grid: tuple[int, int]) -> Tensor | None:
    """Tokens [B, h * w, C] of an image as its map [B, C, h, w]; None where they are others."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1]:
        return None
    return tokens.mT.unflatten(-1, grid)


def as_tokens(maps: Tensor) -> Tensor:
    """`as_map` backwards."""
    return maps.flatten(2).mT


def _without(result: Control, places: Mapping[tuple[str, int], int]) -> dict[str, list[Any]] | None:
    """What a unit says elsewhere; None where that is nothing."""
    left = {
        key: [None if (key, n) in places else one for n, one in enumerate(result.get(key) or ())]
        for key in _KEYS
    }
    return left if any(one is not None for ones in left.values() for one in ones) else None


def total(results: Iterable[Control | None]) -> dict[str, list[Any]] | None:
    """The sum of what units say, layer by layer, in the host's order of adding.

    Layers may be missing (None) and lists differ in length; a smaller batch is broadcast.
    """
    found: dict[str, list[Any]] | None = None
    for result in results:
        if result is None:
            continue
        if found is None:
            found = {key: list(result.get(key) or ()) for key in _KEYS}
            continue
        for key in _KEYS:
            for n, value in enumerate(result.get(key) or ()):
                if n >= len(found[key]):
                    found[key].append(value)
                elif value is not None:
                    before = found[key][n]
                    found[key][n] = value if before is None else before + value
    return found


def _out_of_range(control: Any, t: Tensor) -> bool:
    if tuple(getattr(control, "timestep_percent_range", ())) == _ALWAYS:
        return False  # without asking the device
    span = control.timestep_range
    return span is not None and bool(t[0] > span[0] or t[0] < span[1])

"""Forge, Forge Neo, reForge and Forge Classic: ControlNets as a linked list in front of the UNet.

`unet.controlnet_linked_list` is the newest ControlNet; its `get_control` asks
`previous_controlnet` first and adds what it gets to its own residuals. We work on copies of the
units, and the copy of the newest answers for all of them: it asks them one by one, without their
predecessors, and fuses. Everything a unit does to its own residuals (strength, guidance range,
control mode, region mask, soft weighting) happens inside its `get_control` and stays the host's.
The list is as long as the host's own, and each of its links is of the host's own class, because
others walk it too: what cuts the picture into tiles cuts the hint of each.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..hooks import is_in_front, put_in_front
from ..units import Call, Unit
from . import controlnet_script
from .controlnet_script import too_few
from .sampling import Sampling

log = logging.getLogger(__name__)

# The residuals of a ControlNet of UNet shape; "input" is T2I-Adapters' and stays empty.
_KEYS = ("input", "middle", "output")


def is_here(p: Any) -> bool:
    """Whether `p` belongs to a WebUI of the Forge family."""
    return hasattr(getattr(p.sd_model, "forge_objects", None), "unet")


def attach(sampling: Sampling) -> str | None:
    """Put our node in front of the ControlNets of the run that is about to begin.

    To be called when the host has set its ControlNets up; the UNet is cloned, and everything is
    gone with the host's own reset of its clone.

    Returns:
        Why there is nothing to fuse, or None.
    """
    objects = sampling.p.sd_model.forge_objects
    controls = _list(objects.unet.controlnet_linked_list)
    eligible = [control for control in controls if _eligible(control)]
    if len(eligible) < 2:
        return too_few(len(eligible), len(controls))
    fused = FusedControlNets(
        controls, sampling, objects.unet.model.diffusion_model, _named_models(sampling)
    )
    unet = objects.unet.clone()
    unet.controlnet_linked_list = fused.head
    objects.unet = unet
    return None


class NamedModel(NamedTuple):
    """What the host's own unit of this number runs.

    Attributes:
        number: as the page counts.
        name: of the model.
        model: by which its ControlNet is known again; None where there is none.
    """

    number: int
    name: str
    model: Any


class FusedControlNets:
    """Copies of a host's ControlNets, of which the newest answers for all.

    Attributes:
        controls: the copies, in the order in which they were added; linked as the host's own.
        head: the newest, for the host's list.
    """

    def __init__(
        self,
        controls: Sequence[Any],
        sampling: Sampling,
        unet: torch.nn.Module,
        names: Sequence[NamedModel],
    ) -> None:
        self.sampling = sampling
        self.unet = unet
        self.names = list(names)
        self.controls = [copy.copy(control) for control in controls]
        for older, newer in itertools.pairwise([None, *self.controls]):
            newer.previous_controlnet = older
        self.head = self.controls[-1]
        self._head_alone = self.head.get_control
        self.units: list[Unit] | None = None
        put_in_front(self.head, "get_control", self._get_control)
        put_in_front(self.head, "cleanup", self._cleanup)

    def _get_control(
        self, _own: Any, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, *more: Any
    ) -> dict[str, list[Any]] | None:
        """The residuals of all units as one: a fresh dict of fresh lists, as the host merges them.

        `x_noisy` [rows, C, h, w]; reForge passes its transformer options as one more argument.
        """
        arguments = (x_noisy, t, cond, batched_number, *more)
        options = more[0] if more else self.head.transformer_options
        return self.sampling.attempt(
            lambda: self._fused(arguments, options), lambda: self._sum(arguments)
        )

    def _cleanup(self, own: Any) -> None:
        """The run is over."""
        own()
        self.sampling.close()

    def _sum(self, arguments: tuple[Any, ...]) -> dict[str, list[Any]] | None:
        return _total(self._alone(control, arguments) for control in self.controls)

    def _fused(
        self, arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> dict[str, list[Any]] | None:
        x_noisy, t, cond, batched_number, *_more = arguments
        if self.units is None:
            self.units = self._make_units()
        session = self.sampling.begin(self.unet, self.units)
        if session is None:
            return self._sum(arguments)
        pairs = dict(zip(self.units, self.controls, strict=True))
        active = [unit for unit in self.units if not _out_of_range(pairs[unit], t)]
        session.begin_call(self._describe(x_noisy, cond, batched_number, options), active)
        results: dict[Unit, Any] = {}
        for unit in session.running_order(self.units):

            def forward(control: Any = pairs[unit]) -> Any:
                return self._alone(control, arguments)

            result = session.run(unit, forward)
            if result is not None:
                results[unit] = result
        residuals = {unit: _residuals(results[unit]) for unit in self.units if unit in results}
        fusable = {u: r for u, r in residuals.items() if u.eligible and r is not None}
        fits = len(fusable) > 1 and len({len(r) for r in fusable.values()}) == 1
        fused = session.fuse(fusable if fits else {})
        if not fits or session.settings.fusion == "sum":
            return _total(results[unit] for unit in self.units if unit in results)
        *output, middle = fused
        others = [results[u] for u in self.units if u in results and u not in fusable]
        return _total([{"middle": [middle], "output": output}, *others])

    def _alone(self, control: Any, arguments: tuple[Any, ...]) -> Any:
        """What this unit says for itself."""
        own = self._head_alone if control is self.head else control.get_control
        with _without_predecessors(control):
            return own(*arguments)

    def _make_units(self) -> list[Unit]:
        """A unit for every ControlNet; the host's own number and name where it is one of its."""
        names = list(self.names)
        nameless = itertools.count(-1, -1)
        units = []
        for control in self.controls:
            model = _known_by(control)
            found = next((n for n in names if model is not None and n.model is model), None)
            if found is not None:
                names = [n for n in names if n is not found]
            number = next(nameless) if found is None else found.number
            name = type(control).__name__ if found is None else f"{number}: {found.name}"
            module = getattr(control, "control_model", None)
            if not isinstance(module, torch.nn.Module):
                module = torch.nn.Module()
            hint = control.cond_hint_original
            condition = hint if isinstance(hint, Tensor) and hint.ndim == 4 else None
            units.append(Unit(module, name, _eligible(control), condition, number=number))
        return units

    def _describe(self, x: Tensor, cond: Any, chunks: int, options: Mapping[str, Any]) -> Call:
        """The UNet call that this one prepares: chunk after chunk, each with all pictures."""
        pictures = max(1, len(x) // max(1, chunks))
        marks = list(options.get("cond_or_uncond", []))
        starts = [i * pictures for i, mark in enumerate(marks) if mark == 0]
        parts = self.sampling.parts_of(cond.get("c_crossattn"), starts)
        rows = {
            (picture, part): start + picture
            for part, start in zip(parts, starts, strict=True)
            for picture in range(pictures)
        }
        size = (x.shape[-2], x.shape[-1])
        return self.sampling.call(size, [row % pictures for row in range(len(x))], rows)


@contextmanager
def _without_predecessors(control: Any) -> Iterator[None]:
    previous = control.previous_controlnet
    control.previous_controlnet = None
    try:
        yield
    finally:
        control.previous_controlnet = previous


def _list(newest: Any) -> list[Any]:
    """The ControlNets of a list in the order in which they were added, after ours, if any."""
    found = []
    while newest is not None and not is_in_front(newest, "get_control"):
        found.append(newest)
        newest = newest.previous_controlnet
    return found[::-1]


def _eligible(control: Any) -> bool:
    """Whether this is a ControlNet of UNet shape whose residuals are maps.

    A ControlLora makes its model when the run begins; it is one by its class. A globally pooled
    unit (shuffle) says the same everywhere, so that there is nothing to choose between; one of
    weight 0 says nothing.
    """
    if getattr(control, "global_average_pooling", False) or control.strength == 0:
        return False
    model = getattr(control, "control_model", None)
    if model is None:
        return any(base.__name__ == "ControlLora" for base in type(control).__mro__)
    return hasattr(model, "zero_convs") and hasattr(model, "middle_block_out")


def _out_of_range(control: Any, t: Tensor) -> bool:
    span = control.timestep_range
    return span is not None and bool(t[0] > span[0] or t[0] < span[1])


def _residuals(result: Mapping[str, list[Any]] | None) -> list[Tensor] | None:
    """A unit's residuals in the UNet's order, the middle one last; None if they are not maps."""
    if result is None or result.get("input"):
        return None
    tensors = [*result.get("output", []), *result.get("middle", [])]
    maps = all(isinstance(r, Tensor) and r.ndim == 4 for r in tensors)
    return tensors if maps and len(result.get("middle", [])) == 1 else None


def _total(results: Any) -> dict[str, list[Any]] | None:
    """The sum of what units say, layer by layer, in the host's order of adding.

    Layers may be missing (None) and lists differ in length; a smaller batch is broadcast.
    """
    total: dict[str, list[Any]] | None = None
    for result in results:
        if result is None:
            continue
        if total is None:
            total = {key: list(result.get(key, [])) for key in _KEYS}
            continue
        for key in _KEYS:
            for i, value in enumerate(result.get(key, [])):
                if i >= len(total[key]):
                    total[key].append(value)
                elif value is not None:
                    before = total[key][i]
                    total[key][i] = value if before is None else before + value
    return total


def _named_models(sampling: Sampling) -> list[NamedModel]:
    """The host's enabled units of this pass; none where it is not sure which is which."""
    script = controlnet_script.find(sampling.p)
    loaded = getattr(script, "current_params", None) or {}
    units = controlnet_script.enabled_units(sampling.p, by_default=True)
    if len(units) != len(loaded) and len(units) != _host_count(script, sampling.p):
        return []
    found = []
    for place, unit in enumerate(units):
        if getattr(sampling.p, "enable_hr", False) and unit.rests(sampling.hires):
            sampling.resting.add(unit.number)
            continue
        patcher = getattr(getattr(loaded.get(place), "model", None), "model_patcher", None)
        found.append(NamedModel(unit.number, unit.name, _known_by(patcher)))
    return found


def _host_count(script: Any, p: Any) -> int | None:
    """How many units the host counts itself; Classic loads none without a picture."""
    ask = getattr(script, "get_enabled_units", None)
    return None if ask is None else len(ask(p.script_args[script.args_from : script.args_to]))


def _known_by(control: Any) -> Any:
    """What a ControlNet has in common with its copies; a ControlLora's model is made for each."""
    weights = getattr(control, "control_weights", None)
    return getattr(control, "control_model", None) if weights is None else weights

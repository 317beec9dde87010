"""Forge, Forge Neo, reForge and Forge Classic: ControlNets as a linked list in front of the UNet.

`unet.controlnet_linked_list` is the newest ControlNet (linked_list.py). We work on copies of the
units, and the copy of the newest answers for all of them. The list is as long as the host's own,
and each of its links is of the host's own class, because others walk it too: what cuts the picture
into tiles cuts the hint of each.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..hooks import is_in_front, put_in_front
from ..units import Call, Unit
from . import controlnet_script
from .controlnet_script import too_few
from .linked_list import fused, in_order, is_fusable, total, unit_of, without_predecessors
from .sampling import Sampling

log = logging.getLogger(__name__)


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
    newest = objects.unet.controlnet_linked_list
    controls = in_order(newest, ends=_is_ours)
    eligible = [control for control in controls if is_fusable(control)]
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
        self.units: dict[Unit, Any] | None = None
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
        return total(self._alone(control, arguments) for control in self.controls)

    def _fused(
        self, arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> dict[str, list[Any]] | None:
        x_noisy, t, cond, batched_number, *_more = arguments
        if self.units is None:
            self.units = self._make_units()
        session = self.sampling.begin(self.unet, list(self.units))
        if session is None:
            return self._sum(arguments)
        call = self._describe(x_noisy, cond, batched_number, options)
        return fused(session, call, self.units, t, lambda one: self._alone(one, arguments))

    def _alone(self, control: Any, arguments: tuple[Any, ...]) -> Any:
        """What this unit says for itself."""
        own = self._head_alone if control is self.head else control.get_control
        with without_predecessors(control):
            return own(*arguments)

    def _make_units(self) -> dict[Unit, Any]:
        """A unit for every ControlNet; the host's own number and name where it is one of its."""
        names = list(self.names)
        nameless = itertools.count(-1, -1)
        units = {}
        for control in self.controls:
            model = _known_by(control)
            found = next((n for n in names if model is not None and n.model is model), None)
            if found is not None:
                names = [n for n in names if n is not found]
            number = next(nameless) if found is None else found.number
            name = type(control).__name__ if found is None else f"{number}: {found.name}"
            units[unit_of(control, name, number)] = control
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


def _is_ours(control: Any) -> bool:
    return is_in_front(control, "get_control")


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

"""AUTOMATIC1111 with sd-webui-controlnet: ControlNets inside a forward of the UNet.

The extension replaces the UNet's `forward` by one of its own, which runs one unit after the
other, scales each residual, hands it to `param.apply_effective_region_mask` and adds it to a
running total. That call, one for each residual of each unit, is where we see a unit's finished
residuals and say what is added: zeros for every unit but the last, and for the last one tensors
that are overwritten with the fused residuals when the last of them has come. Models are wrapped
by an instance's own `forward`. The order of `control_params` decides who runs first.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..hooks import put_in_front
from ..session import Session, summed
from ..units import Call, Role, Unit
from . import controlnet_script
from .controlnet_script import too_few
from .sampling import Sampling

log = logging.getLogger(__name__)

_HOOK = ("control_params", "model", "is_in_high_res_fix")
_PARAM = (
    "control_model",
    "control_model_type",
    "guidance_stopped",
    "apply_effective_region_mask",
    "disabled_by_hr_option",
)


def is_here(p: Any) -> bool:
    """Whether `p` belongs to a WebUI with sd-webui-controlnet."""
    return hasattr(controlnet_script.find(p), "latest_network")


def attach(sampling: Sampling) -> str | None:
    """Step in between the units and the UNet of the run that is about to begin.

    To be called when the extension has set its units up. `sampling.close` undoes it.

    Returns:
        Why there is nothing to fuse, or None.
    """
    script = controlnet_script.find(sampling.p)
    hook = script.latest_network
    params = list(getattr(hook, "control_params", None) or [])
    if hook is None or not params:
        return too_few(0, 0)
    lacking = [name for name in _HOOK if not hasattr(hook, name)]
    lacking += [name for name in _PARAM if not all(hasattr(param, name) for param in params)]
    if lacking:
        return f"this version of sd-webui-controlnet is not known (it has no {lacking[0]})"
    if _each_unit_for_each_picture(script):
        return "ControlNet gives each unit to one picture of the batch: there is nothing to fuse"
    here = [param for param in params if not param.disabled_by_hr_option(sampling.hires)]
    eligible = [param for param in here if _eligible(param)]
    if len(eligible) < 2:
        return too_few(len(eligible), len(here))
    if sampling.settings.fusion == "sum" and not (
        sampling.settings.inject or sampling.settings.show_mask
    ):
        return None
    Interception(sampling, hook, params)
    return None


class Interception:
    """What stands between the extension's units and the UNet during one sampling run."""

    def __init__(self, sampling: Sampling, hook: Any, params: list[Any]) -> None:
        self.sampling = sampling
        self.hook = hook
        everyone = _make_units(sampling, params)
        # In the order in which the extension runs them, or passes over those of the other pass.
        self.running = list(zip(params, everyone, strict=True))
        self.units = [unit for unit in everyone if unit.number not in sampling.resting]
        self._rows = RowClock(sampling)
        self._place = 0
        self._call: Call | None = None
        self._fusing: list[Unit] = []
        self._seen: dict[Unit, list[Tensor]] = {}
        self._install()

    def _install(self) -> None:
        undo = self.sampling.on_close
        handle = self.hook.model.register_forward_pre_hook(self._unet_begins, with_kwargs=True)
        undo.append(handle.remove)
        models = {}
        for param, unit in self.running:
            if unit.eligible:
                ours = functools.partial(self._residual, unit)
                undo.append(put_in_front(param, "apply_effective_region_mask", ours))
                models[id(param.control_model)] = param.control_model
        for model in models.values():
            undo.append(put_in_front(model, "forward", functools.partial(self._run, model)))
        if hasattr(self.hook, "original_forward"):
            undo.append(put_in_front(self.hook, "original_forward", self._reference_pass))

    # What happens in one UNet call, in this order

    def _unet_begins(self, _unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The UNet is called; its units will run in a moment, if any of them is active."""
        self._seen, self._fusing, self._place, self._call = {}, [], 0, None
        x = args[0] if args else kwargs.get("x")
        self.sampling.attempt(lambda: self._begin(x), lambda: None)

    def _begin(self, x: Any) -> None:
        begun = self.sampling.session is not None
        session = self.sampling.begin(self.hook.model, self.units)
        if session is None:
            return
        if not begun:
            self._put_foreground_first()
        session.end_call()
        if isinstance(x, Tensor) and x.ndim == 4:
            pictures, rows = self._rows.next_call(len(x))
            self._call = self.sampling.call((x.shape[-2], x.shape[-1]), pictures, rows)

    def _run(self, model: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A unit's ControlNet runs; the first one in a call begins it."""
        session, call = self.sampling.session, self._call
        forward = functools.partial(own, *args, **kwargs)
        if session is None or call is None:
            return forward()

        def ours() -> Any:
            if not self._fusing:
                self._begin_call(session, call)
            return session.run(self._whose_turn(model), forward)

        return self.sampling.attempt(ours, forward)

    def _residual(self, unit: Unit, own: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """A finished residual of `unit`; what is returned is added to the total."""
        value = own(tensor)
        if len(self._fusing) < 2 or unit not in self._fusing:
            return value
        seen = self._seen.setdefault(unit, [])
        seen.append(value)
        if unit is not self._fusing[-1]:
            return torch.zeros_like(value)
        if len(seen) == _residual_count(unit.module):
            self._fuse(seen)
        return value

    def _fuse(self, last: list[Tensor]) -> None:
        """All residuals are here: those of the last unit become the fused ones, in place."""
        seen, self._seen = self._seen, {}
        session = self.sampling.session
        assert session is not None
        fused = self.sampling.attempt(
            lambda: session.fuse(seen),
            # The units before have added nothing, so that the sum is made here.
            lambda: summed([seen[unit] for unit in self.units if unit in seen]),
        )
        for target, source in zip(last, fused, strict=True):
            target.copy_(source)

    def _reference_pass(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A "reference" unit sends its picture through the UNet, which is not to be recorded."""
        session = self.sampling.session
        if session is None:
            return own(*args, **kwargs)
        with session.paused():
            return own(*args, **kwargs)

    # How it is done

    def _begin_call(self, session: Session, call: Call) -> None:
        active = [unit for param, unit in self.running if self._takes_part(param)]
        session.begin_call(call, active)
        self._fusing = [unit for unit in active if unit.eligible]

    def _put_foreground_first(self) -> None:
        """Let the foreground unit run before the others that are fused, which keep their places."""
        places = [i for i, (_param, unit) in enumerate(self.running) if unit.eligible]
        order = sorted((self.running[i] for i in places), key=lambda pair: not _leads(pair[1]))
        for place, pair in zip(places, order, strict=True):
            self.running[place] = pair
        host_order = self.hook.control_params
        ours = [param for param, _unit in self.running]
        self.hook.control_params = ours

        def undo() -> None:
            if self.hook.control_params is ours:
                self.hook.control_params = host_order

        self.sampling.on_close.append(undo)

    def _takes_part(self, param: Any) -> bool:
        """Whether the extension will run this unit in this call."""
        if param.guidance_stopped or param.disabled_by_hr_option(self.hook.is_in_high_res_fix):
            return False
        return bool(param.control_model_type.is_controlnet)

    def _whose_turn(self, model: Any) -> Unit:
        """The unit that runs now: two units may share a model, but they run in order."""
        for place in range(self._place, len(self.running)):
            param, unit = self.running[place]
            if param.control_model is model and self._takes_part(param):
                self._place = place + 1
                return unit
        raise RuntimeError("a ControlNet ran that is not one of the active units")


class RowClock:
    """Which picture and sub-prompt each row of a UNet call is.

    In one denoiser call the WebUI works on a list of rows: for each picture its sub-prompts, then
    each picture's unconditional row. It sends them to the UNet in one call or in several, always
    in that order; the unconditional rows may be left out.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._step = -1
        self._offset = 0

    def next_call(self, batch: int) -> tuple[list[int], dict[tuple[int, int], int]]:
        """For the next UNet call of `batch` rows: each row's picture, and the conditional rows.

        Returns:
            Pictures [batch], and (picture, sub-prompt) -> row; both empty where the call does not
            fit, as with tiles or a model that edits pictures.
        """
        if self._step != self._sampling.denoiser_step:
            self._step, self._offset = self._sampling.denoiser_step, 0
        layout: list[tuple[int, int | None]] = [
            (picture, part)
            for picture, parts in enumerate(self._sampling.parts_per_picture())
            for part in range(parts)
        ]
        layout += [(picture, None) for picture in range(self._sampling.pictures)]
        here = layout[self._offset : self._offset + batch]
        self._offset += batch
        if len(here) < batch:
            return [], {}
        rows = {(p, part): row for row, (p, part) in enumerate(here) if part is not None}
        return [picture for picture, _part in here], rows


def _leads(unit: Unit) -> bool:
    return unit.role is Role.FOREGROUND


def _eligible(param: Any) -> bool:
    """Whether this unit is a ControlNet of UNet shape whose residuals are maps.

    What is pooled over the whole picture (shuffle) is pooled after we have seen it; SparseCtrl's
    batch is a film; a unit of weight 0 says nothing. Advanced weights of another length would cut
    the list of residuals short.
    """
    if not param.control_model_type.is_controlnet or param.global_average_pooling:
        return False
    if param.weight == 0 and getattr(param, "advanced_weighting", None) is None:
        return False
    model = getattr(param.control_model, "control_model", None)
    if "SparseCtrl" in type(model).__name__ or "SparseCtrl" in type(param.control_model).__name__:
        return False
    if not hasattr(model, "zero_convs") or not hasattr(model, "middle_block_out"):
        return False
    weights = getattr(param, "advanced_weighting", None)
    return weights is None or len(weights) == _residual_count(model)


def _residual_count(model: Any) -> int:
    """13 for SD 1.5, 10 for SDXL."""
    return len(model.zero_convs) + 1


def _make_units(sampling: Sampling, params: list[Any]) -> list[Unit]:
    """A unit for every one of the extension's; those of the other pass are bystanders."""
    known = controlnet_script.enabled_units(sampling.p, by_default=False)
    sure = len(known) == len(params)
    units = []
    for place, param in enumerate(params):
        number = known[place].number if sure else -1 - place
        name = f"{number}: {known[place].name}" if sure else controlnet_script.TITLE
        rests = param.disabled_by_hr_option(sampling.hires)
        if rests:
            sampling.resting.add(number)
        model = getattr(param.control_model, "control_model", None)
        module = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
        hint = param.hint_cond
        condition = hint[:, :3] if isinstance(hint, Tensor) and hint.ndim == 4 else None
        eligible = not rests and _eligible(param)
        units.append(Unit(module, name, eligible, condition, number=number))
    return units


def _each_unit_for_each_picture(script: Any) -> bool:
    """The batch option that gives unit 0 to picture 0, unit 1 to picture 1, and so on."""
    state = getattr(script, "ui_batch_option_state", None) or [""]
    return "each" in str(state[0]).lower() or "separate" in str(state[0]).lower()

"""Axes for the WebUI's X/Y/Z plot.

An axis leaves its value on the cell's processing object, in the dict `cross_controlnet_axes` by
setting name, where it wins over the page; a cell with such a value has the method switched on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..schema import Setting, SettingsError
from ..settings import fields, page_message
from .arguments import RefusedError

log = logging.getLogger(__name__)

ATTRIBUTE = "cross_controlnet_axes"
PREFIX = "[CCN] "

# Labels are kept in pictures' texts: changing one breaks pasting.
AXES = {
    "fusion": "Fusion mode",
    "delta": "Delta",
    "inject": "Injection",
    "start_step": "Start step",
    "start_layer": "Start layer",
    "foreground_word": "Foreground word",
    "mask_threshold": "Mask threshold",
    "layers": "Layers",
    "foreground_gain": "Foreground gain",
    "outside_places": "Outside all places",
}

# The plot expands ranges such as "0-1 (+0.1)" for exactly these two types.
_TYPES: dict[str, type] = {"number": float, "integer": int, "step": int}
_DIGITS = 8
_PLOT = "xyz_grid.py"


def register() -> None:
    """Add the axes to every X/Y/Z plot that is loaded; those that are there already stay.

    For the callback `on_before_ui`, and for when the script is loaded: a WebUI without its page
    asks the plot for its axes before that callback.
    """
    from modules import scripts

    for data in scripts.scripts_data:
        if Path(data.path).name == _PLOT:
            _add(data.module)


def _add(plot: ModuleType) -> None:
    try:
        # The plot compares types exactly, so its own class it must be.
        make, options = plot.AxisOption, plot.axis_options
        present = {option.label for option in options}
        new = [axis(name, make) for name in AXES]
        options.extend(option for option in new if option.label not in present)
    except Exception:
        log.warning("no axes in the X/Y/Z plot %s", getattr(plot, "__file__", plot), exc_info=True)


def in_grid(p: Any) -> bool:
    """Whether `p` is a cell of an X/Y/Z plot."""
    scripts = getattr(getattr(p, "scripts", None), "selectable_scripts", None)
    chosen = next(iter(getattr(p, "script_args", None) or ()), 0)
    if not scripts or not isinstance(chosen, int) or not 0 < chosen <= len(scripts):
        return False
    return Path(str(getattr(scripts[chosen - 1], "filename", ""))).name == _PLOT


def axis(name: str, make: Callable[..., Any]) -> Any:
    """Return the axis of the setting `name`, made by the plot's `AxisOption`."""
    setting = fields()[name]
    choices = {"choice": list(setting.choices), "flag": ["true", "false"]}.get(setting.kind)
    more: dict[str, Any] = {}
    if choices is not None:
        more["choices"] = lambda: list(choices)
    if name == "foreground_word":
        more["format_value"] = _word_label
    return make(
        PREFIX + AXES[name],
        _TYPES.get(setting.kind, str),
        _apply(name, setting),
        confirm=_confirm(name, setting),
        **more,
    )


def _apply(name: str, setting: Setting) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, x: Any, xs: Any) -> None:
        # Cells are shallow copies of one object: a dict that was changed would be all cells'.
        setattr(p, ATTRIBUTE, {**getattr(p, ATTRIBUTE, {}), name: _parse(name, setting, x)})

    return apply


def _confirm(name: str, setting: Setting) -> Callable[[Any, list[Any]], None]:
    label = PREFIX + AXES[name]

    def confirm(p: Any, xs: list[Any]) -> None:
        if not xs:
            raise _refused(label, "no value is given")
        if setting.kind == "number" and len(xs) > 2:
            _drop_overshoot(label, setting, xs)
        for x in xs:
            try:
                _parse(name, setting, x)
            except SettingsError as error:
                raise _refused(label, page_message(error)) from error

    return confirm


def _drop_overshoot(label: str, setting: Setting, xs: list[Any]) -> None:
    # Rounding gives the plot's "0-1 (+0.1)" one value more than was asked for, 1.1.
    evenly = math.isclose(xs[-1] - xs[-2], xs[1] - xs[0], abs_tol=1e-9)
    if evenly and xs[-1] > setting.maximum and math.isclose(xs[-2], setting.maximum):
        log.warning("X/Y/Z axis %s: %g is left out, beyond %g", label, xs.pop(), setting.maximum)


def _parse(name: str, setting: Setting, x: Any) -> Any:
    """Return the setting's value for what the plot has; raises SettingsError."""
    if setting.kind == "number" and isinstance(x, float):
        return setting.accept(name, round(x, _DIGITS))
    if setting.kind == "choice" and isinstance(x, str):
        return setting.accept(name, x.strip().lower())
    if setting.kind == "flag":
        return setting.from_infotext(name, x)
    return setting.accept(name, x)


def _word_label(p: Any, option: Any, x: str) -> str:
    return f"{option.label}: {x or '(automatic)'}"


def _refused(label: str, reason: str) -> RefusedError:
    return RefusedError(f"X/Y/Z axis {label}: {reason}")

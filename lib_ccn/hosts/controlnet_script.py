"""The WebUIs' own ControlNet script, asked for its units."""

from __future__ import annotations

import logging
import re
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

TITLE = "ControlNet"

# The passes of a generation with the hires fix in which a unit runs, in the hosts' order.
_PASSES = ("both", "low res only", "high res only")


class EnabledUnit(NamedTuple):
    """One of the host's units.

    Attributes:
        number: how the page and the API count it, from 0.
        name: of its model.
        hr_option: the pass of a generation with the hires fix that it is for, as the host has it.
    """

    number: int
    name: str
    hr_option: Any = None

    def rests(self, hires: bool) -> bool:
        """Whether it takes no part in this pass of a generation with the hires fix."""
        option = getattr(self.hr_option, "value", self.hr_option)
        if isinstance(option, str):
            text = option.removeprefix("HiResFixOption.").replace("_", " ").lower()
            option = _PASSES.index(text) if text in _PASSES else 0
        return option == (1 if hires else 2)


def find(p: Any) -> Any:
    """The ControlNet script of this generation, or None."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or []
    return next((script for script in scripts if script.title() == TITLE), None)


def enabled_units(p: Any, by_default: bool) -> list[EnabledUnit]:
    """The enabled units in the order in which the host runs them.

    A unit with several pictures is as many units of the same number where the host takes it
    apart. What is returned may differ from what the host does all the same, and is empty where
    the units cannot be read: number the host's units by it only if there are as many.

    Args:
        p: the WebUI's processing object.
        by_default: whether a unit that comes through the API is enabled unless it says otherwise.
    """
    try:
        script = find(p)
        arguments = p.script_args[script.args_from : script.args_to]
        return [
            EnabledUnit(number, _model_name(unit), _value(unit, "hr_option"))
            for number, unit in enumerate(arguments)
            if _value(unit, "enabled", by_default and isinstance(unit, dict))
            for _copy in range(_copies(unit))
        ]
    except Exception as error:  # without them the units have no numbers, and that is all
        log.debug("the ControlNet script's units cannot be read: %s", error)
        return []


def too_few(eligible: int, active: int) -> str:
    """Why nothing can be fused, in words."""
    found = {0: "no ControlNet unit is on", 1: "only one ControlNet unit is on"}.get(
        active, f"of the {active} ControlNet units that are on, {eligible or 'none'} can be"
    )
    return f"fewer than two units can be fused: {found}"


def _model_name(unit: Any) -> str:
    """As people know it, without the hash of its file."""
    return re.sub(r" \[[0-9a-f]+\]$", "", str(_value(unit, "model") or "")) or TITLE


def _copies(unit: Any) -> int:
    """How many units of one picture the host makes of this one: reForge, sd-webui-controlnet."""
    mode = _value(unit, "input_mode")
    if getattr(mode, "value", mode) != "merge" or _value(unit, "accepts_multiple_inputs"):
        return 1
    pictures = (_value(unit, name) for name in ("multi_inputs_gallery", "image"))
    return next((len(found) for found in pictures if isinstance(found, list)), 1)


def _value(unit: Any, name: str, otherwise: Any = None) -> Any:
    if isinstance(unit, dict):
        return unit.get(name, otherwise)
    return getattr(unit, name, otherwise)

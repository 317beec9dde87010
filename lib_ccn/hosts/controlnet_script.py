"""The WebUIs' own ControlNet script, asked for its units."""

from __future__ import annotations

import logging
import re
from typing import Any

log = logging.getLogger(__name__)

TITLE = "ControlNet"


def find(p: Any) -> Any:
    """The ControlNet script of this generation, or None."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or []
    return next((script for script in scripts if script.title() == TITLE), None)


def enabled_units(p: Any) -> list[tuple[int, str]]:
    """Number and model name of each enabled unit, in order; empty where that cannot be read."""
    try:
        script = find(p)
        arguments = p.script_args[script.args_from : script.args_to]
        return [
            (number, _model_name(unit))
            for number, unit in enumerate(arguments)
            if _value(unit, "enabled") is True
        ]
    except Exception as error:  # they are for people only
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


def _value(unit: Any, name: str) -> Any:
    return unit.get(name) if isinstance(unit, dict) else getattr(unit, name, None)

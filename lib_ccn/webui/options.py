"""The section "Cross-ControlNet" of the WebUI's settings page."""

from __future__ import annotations

from typing import Any

from . import console
from .presets import default_store

SECTION = ("cross_controlnet", "Cross-ControlNet")
PRESET = "cross_controlnet_preset"
LOG_LEVEL = "cross_controlnet_log_level"
SAVE_MASKS = "cross_controlnet_save_masks"

LEVELS = ("WARNING", "INFO", "DEBUG")
# No preset can be called so: a name has a letter or a digit.
NO_PRESET = "-"


def register() -> None:
    """Add the options to the settings page; for the callback `on_ui_settings`."""
    import gradio
    from modules import shared

    def add(key: str, default: Any, label: str, info: str, **more: Any) -> None:
        option = shared.OptionInfo(default, label, section=SECTION, **more).info(info)
        shared.opts.add_option(key, option)

    add(
        PRESET,
        NO_PRESET,
        "Default preset",
        "what the accordion shows when the page is loaded; requires Reload UI",
        component=gradio.Dropdown,
        component_args=_preset_choices,
        refresh=lambda: None,
    )
    add(
        LOG_LEVEL,
        "INFO",
        "Log level",
        "INFO writes one line per generation",
        component=gradio.Radio,
        component_args={"choices": list(LEVELS)},
        onchange=apply_log_level,
    )
    add(
        SAVE_MASKS,
        False,
        "Save foreground masks",
        "beside the pictures, whenever 'Show what was done' is on",
    )
    apply_log_level()


def default_preset() -> str:
    """Return the name of the preset that the page starts with, or "" for the defaults."""
    name = _value(PRESET, NO_PRESET)
    return name if isinstance(name, str) and name != NO_PRESET else ""


def log_level() -> str:
    """Return one of `LEVELS`."""
    level = _value(LOG_LEVEL, "INFO")
    return level if level in LEVELS else "INFO"


def saves_masks() -> bool:
    """Return whether mask pictures are saved to the outputs folder."""
    return _value(SAVE_MASKS, False) is True


def apply_log_level() -> None:
    """Write the log to the console at the chosen level.

    To be called when the script is loaded too: a WebUI without its page never asks for options.
    """
    console.start(log_level())


def _value(key: str, default: Any) -> Any:
    # Before `register`, and in a WebUI without its page, only what config.json has is there.
    from modules import shared

    return shared.opts.data.get(key, default)


def _preset_choices() -> dict[str, Any]:
    # A value that is no choice would keep gradio 4 from applying any setting of the page.
    current = [default_preset()] if default_preset() else []
    return {"choices": list(dict.fromkeys([NO_PRESET, *default_store().names(), *current]))}

"""Cross-ControlNet from another extension's script.

    class Script(scripts.Script):
        def before_process(self, p, *args):
            try:
                from lib_ccn import external_code as cross_controlnet
            except ImportError:
                return  # the extension is not installed
            cross_controlnet.set_settings(p, {"preset": "SDXL", "foreground_word": "dancer"})

Import it inside a callback, as here. The WebUI loads scripts one after the other and A1111 puts an
extension's folder on `sys.path` only meanwhile; once all are loaded, `lib_ccn` is found everywhere.
`importlib.import_module("extensions.sd-webui-cross-controlnet.lib_ccn.external_code")` works too,
from the moment the WebUI starts, where the folder has that name.

The settings of a generation are read when this extension's `process` runs, so `setup`,
`before_process`, or the `run` of a selectable script is the place to set them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .settings import TITLE, Settings

__all__ = ["TITLE", "Settings", "get_settings", "is_available", "set_settings"]


def is_available(p: Any) -> bool:
    """Return whether the generation `p` has this extension's script and its arguments."""
    return _place(p) is not None


def get_settings(p: Any) -> Settings | None:
    """Return the settings of the generation `p`, or None where `is_available` is false.

    Settings that cannot be used come back as switched off, as the generation treats them; a cell
    of an X/Y/Z plot has its own.
    """
    from .webui import arguments, xyz

    place = _place(p)
    if place is None:
        return None
    axes = getattr(p, xyz.ATTRIBUTE, None)
    request = arguments.read(p.script_args[place[0] : place[1]], axes)
    return request.settings if request.problem is None else request.settings.replace(enabled=False)


def set_settings(p: Any, settings: Settings | Mapping[str, Any] | None, **changes: Any) -> bool:
    """Set what the method does in the generation `p`; False where `is_available` is false.

    Args:
        p: the WebUI's processing object.
        settings: a Settings is taken as it is, `enabled` included. A mapping of setting names to
            plain values is what the API takes: enabled unless it says otherwise, "preset" may
            name a preset, what is missing takes its default. None switches the method off or,
            with changes, keeps p's settings.
        changes: settings by name, over those.

    Raises SettingsError, a ValueError, which names the setting, the value and what is allowed;
    PresetError, a ValueError, for an unknown preset; TypeError for another kind of settings.
    Then `p` is unchanged.
    """
    place = _place(p)
    if settings is None:
        present = get_settings(p) if changes else None
        chosen = present or Settings()
    elif isinstance(settings, Mapping):
        chosen = _from_mapping(settings)
    elif isinstance(settings, Settings):
        chosen = settings
    else:
        raise TypeError(f"settings are Settings, a mapping or None, not {type(settings).__name__}")
    values = chosen.replace(**changes).to_dict()
    if place is None:
        return False
    args = list(p.script_args)
    args[place[0]] = values
    # A new sequence: the host may share the old one between generations.
    p.script_args = args if isinstance(p.script_args, list) else tuple(args)
    return True


def _from_mapping(mapping: Mapping[str, Any]) -> Settings:
    values = {"enabled": True, **mapping}
    if "preset" in values:
        from .webui.presets import default_store

        values = {**default_store().load(values.pop("preset")), **values}
    return Settings.from_dict(values)


def _place(p: Any) -> tuple[int, int] | None:
    """Return where this extension's arguments begin and end among all scripts' arguments."""
    args = getattr(p, "script_args", None)
    if not isinstance(args, (list, tuple)):
        return None
    for script in getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or ():
        first, last = getattr(script, "args_from", None), getattr(script, "args_to", None)
        if script.title() != TITLE or first is None or last is None:
            continue
        return (first, last) if first < len(args) else None
    return None

"""What the page, the API and X/Y/Z send with a generation, read into one `Request`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..settings import Settings, SettingsError, fields
from . import painted

__all__ = ["PAGE", "Request", "plain_value", "read"]

# Settings with a control on the page, in the order of the script's arguments.
PAGE: tuple[str, ...] = tuple(name for name in fields() if name != "strict")

# A problem goes into the picture's text, and lists within lists can be long in the telling.
_PROBLEM_LIMIT = 800

# A unit as the page's dropdown writes it: its number, and its model where that is known.
_UNIT = re.compile(r"([0-9]{1,3})(:.*)?", re.DOTALL)

log = logging.getLogger(__name__)


class Presets(Protocol):
    """What `read` needs of a `PresetStore`."""

    def load(self, name: str) -> Mapping[str, Any]:
        """Return the settings of a preset, plain values by name."""


@dataclass(frozen=True)
class Request:
    """The settings of one generation as they were asked for.

    Attributes:
        settings: the defaults, which are off, where `problem` is set.
        problem: why what was asked for is refused, in words for the user.
        strict: whether a problem shall end the generation instead of costing the fusion alone.
    """

    settings: Settings
    problem: str | None = None
    strict: bool = False


def read(
    args: Sequence[Any], axes: Mapping[str, Any] | None = None, presets: Presets | None = None
) -> Request:
    """Read a script's arguments; never raises, whatever they are.

    Args:
        args: either one mapping of settings by name, as JSON gives it, which is on unless it says
            `"enabled": false`, may name a `"preset"` whose values stand under its own, and may be
            followed by anything; or values in the order of `PAGE`, where None and what is missing
            take the default, and a first value of false ends the reading. After them may come the
            strokes painted on the mask image, a transparent picture; other surplus is ignored.
        axes: values of an X/Y/Z cell by setting name. They win over `args` and switch the method
            on.
        presets: where presets are looked up; None takes the user's own.
    """
    strict = False
    try:
        named = len(args) > 0 and isinstance(args[0], Mapping)
        strict = named and args[0].get("strict") is True
        values = _named(args[0], presets) if named else _positional(args)
        if axes:
            values.update({"enabled": True, **axes})
        elif not named and values["enabled"] is False:
            return Request(Settings())
        values["mask_image"] = _mask_image(values)
        settings = Settings.from_dict(values)
        return Request(settings, None, settings.strict)
    except SettingsError as error:
        return Request(Settings(), _cut(str(error)), strict)
    except Exception as error:
        log.exception("the settings of a generation could not be read")
        problem = f"the settings could not be read ({type(error).__name__})"
        return Request(Settings(), problem, strict)


def plain_value(name: str, value: Any) -> Any:
    """Return a setting's value as the settings have it, given the value of its control."""
    if fields()[name].kind == "unit" and isinstance(value, str):
        match = _UNIT.fullmatch(value)
        return int(match[1]) if match else value
    return value


def _named(given: Mapping[str, Any], presets: Presets | None) -> dict[str, Any]:
    values: dict[str, Any] = {"enabled": True}
    if given.get("preset") is not None:
        values.update(_preset(given["preset"], presets))
    values.update({name: value for name, value in given.items() if name != "preset"})
    return values


def _preset(name: Any, presets: Presets | None) -> Mapping[str, Any]:
    if not isinstance(name, str):
        raise SettingsError("preset", name, "the name of a preset")
    try:
        if presets is None:
            from .presets import default_store

            presets = default_store()
        return presets.load(name)
    except Exception as error:  # a store on a disk, so anything may be wrong with it
        raise SettingsError("preset", name, f"a preset that can be loaded ({error})") from error


def _positional(args: Sequence[Any]) -> dict[str, Any]:
    given = {k: plain_value(k, v) for k, v in zip(PAGE, args, strict=False) if v is not None}
    surplus = args[len(PAGE) :]
    if surplus and painted.is_picture(surplus[0]):
        image = given.get("mask_image")
        if image is None or painted.is_picture(image):
            given["mask_image"] = painted.with_strokes(image, surplus[0])
    return {"enabled": fields()["enabled"].default, **given}


def _mask_image(values: Mapping[str, Any]) -> Any:
    """The mask image as base64, or what was given instead, for the settings to refuse.

    A picture left on the page takes no part while the mask comes from somewhere else.
    """
    value = values.get("mask_image")
    if painted.is_picture(value):
        return painted.to_base64(value) if values.get("mask_source") == "image" else None
    return None if isinstance(value, str) and value == "" else value


def _cut(text: str) -> str:
    """The text without its middle where it is too long; its end says what is expected."""
    half = _PROBLEM_LIMIT // 2
    return text if len(text) <= _PROBLEM_LIMIT else f"{text[:half]} [...] {text[-half:]}"

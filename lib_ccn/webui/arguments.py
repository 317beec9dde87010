"""What the page, the API and X/Y/Z send with a generation, read into one `Request`.

A choice of the page's two unit dropdowns is plain text, since gradio 3.41 knows no labels apart
from values: "auto", "0", "1: name of its model"...; what is read of it is its number.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..layers import said_otherwise
from ..settings import TITLE, Settings, SettingsError, fields, page_message
from ..showable import make_encodable, showable
from . import painted

try:
    from fastapi import HTTPException
except ImportError:  # outside a WebUI

    class HTTPException(Exception):  # type: ignore[no-redef]  # noqa: N818
        """As fastapi's, as far as it matters here."""

        def __init__(self, status_code: int, detail: str) -> None:
            super().__init__(detail)
            self.status_code = status_code
            self.detail = detail


__all__ = [
    "PAGE",
    "RefusedError",
    "Request",
    "named_choice",
    "plain_value",
    "read",
    "unit_choices",
    "without_pictures",
]

_NO_MODEL = ("", "none")

# Settings with a control on the page, in the order of the script's arguments.
PAGE: tuple[str, ...] = tuple(name for name in fields() if name != "strict")

# A problem goes into the picture's text, and every setting may be refused.
_PROBLEM_LIMIT = 800

# A unit as the page's dropdown writes it: its number, and its model where that is known; or a step.
_NUMBER = re.compile(r"([0-9]{1,3})(:.*)?", re.DOTALL)

log = logging.getLogger(__name__)


class Presets(Protocol):
    """What `read` needs of a `PresetStore`."""

    def load(self, name: str) -> Mapping[str, Any]:
        """Return the settings of a preset, plain values by name."""


class RefusedError(HTTPException):
    """A generation is refused for this reason; the WebUIs' API answers HTTP 422 with it."""

    def __init__(self, reason: str) -> None:
        super().__init__(422, f"{TITLE}: {showable(reason)}")

    def __str__(self) -> str:
        return str(self.detail)


@dataclass(frozen=True)
class Request:
    """The settings of one generation as they were asked for.

    Attributes:
        settings: what could be read of them; a refused one has its default. With a `problem` they
            are not to be used, only to be written down.
        problem: why what was asked for is refused, in words for the user.
        strict: whether a problem shall end the generation instead of costing the fusion alone.
        refused: the names of the settings that were.
    """

    settings: Settings
    problem: str | None = None
    strict: bool = False
    refused: frozenset[str] = frozenset()

    def to_infotext(self) -> dict[str, str]:
        """Return the infotext of all that was asked for and could be read, used or not.

        So pasting it brings back what was set beside a refused setting.
        """
        if "enabled" not in self.refused:
            return self.settings.to_infotext()
        texts = self.settings.replace(enabled=True).to_infotext()
        return {key: text for key, text in texts.items() if key != fields()["enabled"].infotext}


def read(
    args: Sequence[Any], axes: Mapping[str, Any] | None = None, presets: Presets | None = None
) -> Request:
    """Read a script's arguments; never raises, whatever they are.

    A WebUI sends its request back in the answer, so that text which none can hold would cost the
    pictures: in what of `args` the caller's lists and mappings are, it is escaped for good.

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
    errors: list[SettingsError] = []
    try:
        named = len(args) > 0 and isinstance(args[0], Mapping)
        strict = named and args[0].get("strict") is True
        values = _named(args[0], presets, errors) if named else _positional(args)
        if axes:
            over = _in_layers(values, axes)
            values = {**_without_other_way(values, over), "enabled": True, **over}
        elif not named and values["enabled"] is False:
            return Request(Settings())
        values["mask_image"] = _mask_image(values, errors)
        settings, more = Settings.from_readable(values)
        errors += more
        problem = showable("; ".join(map(page_message, errors)), _PROBLEM_LIMIT) or None
        refused = frozenset(error.field for error in errors)
        return Request(settings, problem, settings.strict, refused)
    except Exception as error:
        log.exception("the settings of a generation could not be read")
        problem = f"the settings could not be read ({type(error).__name__})"
        return Request(Settings(), problem, strict)
    finally:
        make_encodable(args)


def without_pictures(args: Sequence[Any]) -> list[Any] | None:
    """The same arguments with the mask image as base64, or None where there is no picture.

    Other extensions send all scripts' arguments to other machines as JSON. What cannot be read as
    a mask image stays as it is, for `read` to refuse.
    """
    if not any(map(painted.is_picture, args)):
        return None
    plain = [None if painted.is_picture(value) else value for value in args]
    if not isinstance(args[0], Mapping):
        errors: list[SettingsError] = []
        plain[PAGE.index("mask_image")] = _mask_image(_positional(args), errors)
        if errors:
            return None
    return plain


def plain_value(name: str, value: Any) -> Any:
    """Return a setting's value as the settings have it, given the value of its control.

    A choice may come by its title, as the page has it, or as itself.
    """
    setting = fields()[name]
    if setting.kind in ("step", "unit") and isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        return int(match[1]) if match else value
    if isinstance(value, str) and value in setting.titles:
        return setting.choices[setting.titles.index(value)]
    return value


def unit_choices(models: Sequence[str | None]) -> list[str]:
    """Return the choices for units with these models; None or "None" is no model."""
    names = [showable(model).strip() if model is not None else "" for model in models]
    return ["auto"] + [
        f"{number}" if name.lower() in _NO_MODEL else f"{number}: {name}"
        for number, name in enumerate(names)
    ]


def named_choice(value: object, choices: Sequence[str]) -> str:
    """Return the one of `choices` that means the same unit as `value`, or `value` as text."""
    text = str(value)
    number = text.partition(":")[0]
    return next((choice for choice in choices if choice.partition(":")[0] == number), text)


def _named(
    given: Mapping[str, Any], presets: Presets | None, errors: list[SettingsError]
) -> dict[str, Any]:
    values: dict[str, Any] = {"enabled": True}
    if given.get("preset") is not None:
        try:
            values.update(_preset(given["preset"], presets))
        except SettingsError as error:
            errors.append(error)
    own = {name: value for name, value in given.items() if name != "preset"}
    return {**_without_other_way(values, own), **own}


def _without_other_way(values: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The values, without what says otherwise than those put over them who is in front."""
    dropped = said_otherwise(over)
    return {name: value for name, value in values.items() if name not in dropped}


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


def _in_layers(values: Mapping[str, Any], axes: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's values; its foreground word is that of the layer in front, where there are some."""
    layers = axes.get("layers", values.get("layers"))
    if not layers or "foreground_word" not in axes:
        return dict(axes)
    first, *others = fields()["layers"].accept("layers", layers)
    others = [replace(first, word=axes["foreground_word"]), *others]
    return {**axes, "layers": others, "foreground_word": fields()["foreground_word"].default}


def _positional(args: Sequence[Any]) -> dict[str, Any]:
    given = {k: plain_value(k, v) for k, v in zip(PAGE, args, strict=False) if v is not None}
    surplus = args[len(PAGE) :]
    if surplus and painted.is_picture(surplus[0]):
        image = given.get("mask_image")
        if image is None or painted.is_picture(image):
            given["mask_image"] = painted.with_strokes(image, surplus[0])
    return {"enabled": fields()["enabled"].default, **given}


def _mask_image(values: Mapping[str, Any], errors: list[SettingsError]) -> Any:
    """The mask image as base64, or what was given instead, for the settings to refuse.

    A picture left on the page takes no part while the mask comes from somewhere else.
    """
    value = values.get("mask_image")
    if not painted.is_picture(value):
        return None if isinstance(value, str) and value == "" else value
    if values.get("mask_source") != "image":
        return None
    try:
        return painted.to_base64(value)
    except SettingsError as error:
        errors.append(error)
        return None

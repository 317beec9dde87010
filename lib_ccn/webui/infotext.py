"""Pasting a picture's generation info into the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..settings import Settings, SettingsError, fields, infotext_of, page_message
from .arguments import PAGE

__all__ = ["PASTED", "PasteKey", "page_value", "pasted"]

# Settings that a picture's text restores; it carries no image.
PASTED: tuple[str, ...] = tuple(name for name in PAGE if fields()[name].kind != "image")

log = logging.getLogger(__name__)


def page_value(name: str, value: Any) -> Any:
    """Return a setting's value as its control on the page holds it."""
    setting = fields()[name]
    if setting.kind in ("step", "unit"):
        return str(value)
    if setting.kind == "layers":
        return setting.to_infotext(setting.accept(name, value))
    if setting.titles and value in setting.choices:
        return setting.titles[setting.choices.index(value)]
    return value


def pasted(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page's controls shall show, by setting name, for pasted infotext.

    A picture made with the method sets every control of `PASTED`, except those whose text cannot
    be read, which are left alone with one warning. One made without it only switches the method
    off.
    """
    values, errors = _read(params)
    if errors:
        log.warning("pasted infotext: %s", "; ".join(map(page_message, errors)))
    return values


def _read(params: Mapping[str, Any]) -> tuple[dict[str, Any], list[SettingsError]]:
    """The controls' values in `params`, and why some of them cannot be read."""
    given: dict[str, Any] = {}
    errors: list[SettingsError] = []
    texts = infotext_of(params)
    for name in (name for name in PASTED if name in texts):
        text = texts[name]
        try:
            given[name] = fields()[name].from_infotext(name, text)
        except SettingsError as error:
            errors.append(error)
    settings, more = Settings.from_readable(given)
    errors += more
    if not settings.enabled:
        return {"enabled": False}, errors
    unread = {error.field for error in errors}
    readable = (name for name in PASTED if name not in unread)
    return {name: page_value(name, getattr(settings, name)) for name in readable}, errors


class PasteKey(str):
    """A setting's infotext name that also reads the pasted value.

    The WebUI calls what can be called with everything pasted, and compares names as text when it
    sends settings from one tab to another. Values are plain, not gradio updates: the WebUI's API
    takes only plain ones, in every version of gradio. None leaves the control as it is. Of one
    pasted text, the first setting's key alone tells what cannot be read.
    """

    name: str

    def __new__(cls, name: str) -> PasteKey:
        """Make the key of the setting `name`."""
        key = super().__new__(cls, fields()[name].infotext)
        key.name = name
        return key

    def __call__(self, params: Mapping[str, Any]) -> Any:
        """Return the control's new value, or None."""
        values = pasted(params) if self.name == PASTED[0] else _read(params)[0]
        return values.get(self.name)

"""Pasting a picture's generation info into the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..settings import Settings, SettingsError, fields
from .arguments import PAGE

__all__ = ["PASTED", "PasteKey", "page_value", "pasted"]

# Settings that a picture's text restores; it carries no image.
PASTED: tuple[str, ...] = tuple(name for name in PAGE if fields()[name].kind != "image")

log = logging.getLogger(__name__)


def page_value(name: str, value: Any) -> Any:
    """Return a setting's value as its control on the page holds it."""
    return str(value) if fields()[name].kind == "unit" else value


def pasted(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page's controls shall show, by setting name, for pasted infotext.

    A picture made with the method sets every control of `PASTED`, except those whose text cannot
    be read, which are left alone with a warning. One made without it only switches the method off.
    """
    settings, unread = _readable(params)
    if not settings.enabled:
        return {"enabled": False}
    return {
        name: page_value(name, getattr(settings, name)) for name in PASTED if name not in unread
    }


def _readable(params: Mapping[str, Any]) -> tuple[Settings, set[str]]:
    """The settings in `params` and the names of those that could not be read."""
    left = {key: params.get(key) for key in (fields()[name].infotext for name in PASTED)}
    unread: set[str] = set()
    for _ in PASTED:
        try:
            return Settings.from_infotext(left), unread
        except SettingsError as error:
            log.warning("pasted infotext: %s", error)
            unread.add(error.field)
            left[fields()[error.field].infotext] = None
    return Settings(), unread


class PasteKey(str):
    """A setting's infotext name that also reads the pasted value.

    The WebUI calls what can be called with everything pasted, and compares names as text when it
    sends settings from one tab to another. Values are plain, not gradio updates: the WebUI's API
    takes only plain ones, in every version of gradio. None leaves the control as it is.
    """

    name: str

    def __new__(cls, name: str) -> PasteKey:
        """Make the key of the setting `name`."""
        key = super().__new__(cls, fields()[name].infotext)
        key.name = name
        return key

    def __call__(self, params: Mapping[str, Any]) -> Any:
        """Return the control's new value, or None."""
        return pasted(params).get(self.name)

"""Units in front, each with its place: one entry of the setting `layers`, and how it is written.

A list goes from front to back. As text, which pictures carry and the page shows, it is
"0 dancer, 1 horse (silhouette)": a unit's number, its word, and in brackets what is not as for all
the others. Only the standard library is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import unquote

from .schema import Setting, SettingsError

LAYER_LIMIT = 10

# The two ways to say who is in front.
WAYS = (("layers",), ("foreground_unit", "foreground_word"))

_ENTRY = re.compile(r"\s*(\d{1,3})(?:\s+([^(),;]*?))?\s*(?:\(([^()]*)\))?\s*")
_THRESHOLD = "threshold"
_RESERVED = re.compile("[%,;()]")
_TEXT = "text such as '0 dancer, 1 horse (silhouette)'"


@dataclass(frozen=True)
class Layer:
    """One unit in front of others.

    Attributes:
        unit: its number, or "auto" for the first that can be fused.
        word: that names what it shows; "" finds one.
        mask_source, mask_threshold, mask_image: its own; None as the setting of that name has it.
    """

    unit: int | str
    word: str = ""
    mask_source: str | None = None
    mask_threshold: float | None = None
    mask_image: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without what is not set."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in named.items() if value not in (None, "")}

    def text(self) -> str:
        """As a picture's text has it; of an image only that there was one."""
        details = [self.mask_source] if self.mask_source else []
        if self.mask_threshold is not None:
            details.append(f"{_THRESHOLD} {self.mask_threshold}")
        word = _RESERVED.sub(lambda found: f"%{ord(found[0]):02X}", self.word)
        return " ".join([str(self.unit), *filter(None, [word]), *_bracketed(details)])


@dataclass(frozen=True)
class LayersSetting(Setting):
    """The setting `layers`: a list of entries, or their text.

    Attributes:
        parts: gives by an entry's name the setting that says what it may be.
    """

    parts: Callable[[], Mapping[str, Setting]] = field(default=dict)

    @property
    def allowed(self) -> str:
        """The accepted values, in words."""
        return (
            f"a list of at most {LAYER_LIMIT} entries such as {{'unit': 0, 'word': 'dancer'}}, "
            f"each of another unit, or {_TEXT}"
        )

    def accept(self, name: str, value: Any) -> tuple[Layer, ...]:
        """The entries, each a `Layer`; raises SettingsError."""
        entries = value
        if isinstance(value, str):
            entries = self._read(name, value)
        if not isinstance(entries, (list, tuple)) or len(entries) > LAYER_LIMIT:
            raise SettingsError(name, value, self.allowed)
        layers = tuple(self._entry(name, n, entry) for n, entry in enumerate(entries))
        numbers = [layer.unit for layer in layers]
        if len(set(numbers)) < len(numbers):
            raise SettingsError(name, value, "each unit only once")
        return layers

    def plain(self, value: tuple[Layer, ...]) -> Any:
        """As JSON has it."""
        return [layer.plain() for layer in value]

    def to_infotext(self, value: tuple[Layer, ...]) -> str:
        """As a picture's text has it."""
        return ", ".join(layer.text() for layer in value)

    def from_infotext(self, name: str, value: Any) -> tuple[Layer, ...]:
        """The value that `to_infotext` wrote; an image is not in it."""
        return self.accept(name, value)

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of this setting."""
        parts = {name: setting.json_schema() for name, setting in self.parts().items()}
        entry = {
            "type": "object",
            "properties": parts,
            "required": ["unit"],
            "additionalProperties": False,
        }
        return {
            "anyOf": [
                {"type": "array", "items": entry, "maxItems": LAYER_LIMIT},
                {"type": "string", "description": _TEXT},
            ],
            "title": self.label,
            "description": self.help,
            "default": [],
        }

    def _entry(self, name: str, place: int, entry: Any) -> Layer:
        if isinstance(entry, Layer):
            entry = entry.plain()
        parts = self.parts()
        if not isinstance(entry, Mapping) or entry.get("unit") is None:
            raise SettingsError(name, entry, self.allowed, f" as its entry {place}")
        for key in entry:
            if key not in parts:
                allowed = "an entry with " + ", ".join(parts)
                raise SettingsError(name, entry, allowed, f" as its entry {place}: {key!r}")
        values = {}
        for key, value in entry.items():
            if value is None:
                continue
            try:
                values[key] = parts[key].accept(name, value)
            except SettingsError as error:
                where = f" as {key} of its entry {place}"
                raise SettingsError(name, value, error.allowed, where) from None
        return Layer(**values)

    def _read(self, name: str, text: str) -> list[dict[str, Any]]:
        entries = []
        for part in _split(text):
            match = _ENTRY.fullmatch(part)
            if match is None:
                raise SettingsError(name, text, _TEXT)
            number, word, details = match.groups()
            entry: dict[str, Any] = {"unit": int(number), "word": unquote(word or "")}
            for detail in filter(None, map(str.strip, (details or "").split(","))):
                key, _, value = detail.partition(" ")
                if key != _THRESHOLD:
                    entry["mask_source"] = detail
                    continue
                try:
                    entry["mask_threshold"] = float(value)
                except ValueError:
                    raise SettingsError(name, text, f"a number behind {_THRESHOLD!r}") from None
            entries.append(entry)
        return entries


def said_otherwise(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that would say in the other way who is in front, where these values say it."""
    if values.get("layers"):
        return WAYS[1]
    said = (values.get(name) for name in WAYS[1])
    return WAYS[0] if any(value not in (None, "", "auto") for value in said) else ()


def _split(text: str) -> list[str]:
    """The entries of a text; commas in brackets are an entry's own.

    Semicolons will do too, as in a list whose own entries are such texts.
    """
    return re.split(r"[,;](?![^()]*\))", text) if text.strip() else []


def _bracketed(details: list[str]) -> list[str]:
    return [f"({', '.join(details)})"] if details else []

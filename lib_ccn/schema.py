"""One setting: what it accepts, how it is written into a picture's text, and its JSON schema.

Which settings there are stands in `settings.py`. Only the standard library is imported.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal
from urllib.parse import unquote

from .showable import has_hidden, showable, shown_value

IMAGE_LIMIT = 48 * 2**20
MESSAGE_LIMIT = 800
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


class SettingsError(ValueError):
    """A setting was refused.

    Attributes: `field`, the setting's name; `value`, what was given, unshortened; `allowed`, what
    would have been accepted, in words. The message names all three, fit to be shown anywhere.
    """

    def __init__(self, field: str, value: object, allowed: str, hint: str = "") -> None:
        self.field, self.value, self.allowed = field, value, allowed
        self._hint = hint
        super().__init__(self.told(f"setting {field}", allowed))

    def told(self, name: str, allowed: str) -> str:
        """Return the message with other words for the setting's name and for what is allowed."""
        refused = f"{name} = {shown_value(self.value)} is refused{self._hint}"
        return showable(f"{refused}: expected {allowed}", MESSAGE_LIMIT)


@dataclass(frozen=True)
class Setting:
    """What is known about one setting; held in the metadata of its field of `Settings`.

    `minimum`, `maximum` and `step` belong to the kinds "number", "integer", "step" and "unit",
    `choices` to "choice", `maximum` to "text" too (characters). A "step" is one of the sampler's, a
    "unit" one of the host's; either may be "auto". `titles` are what the page calls the choices.
    """

    kind: Literal["flag", "number", "integer", "choice", "step", "unit", "text", "image", "layers"]
    default: Any
    label: str
    help: str
    infotext: str
    minimum: float = 0
    maximum: float = 0
    step: float = 1
    choices: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The accepted values, in words."""
        return {
            "flag": "true or false",
            "number": f"a number from {self.minimum} to {self.maximum}",
            "integer": f"a whole number from {self.minimum} to {self.maximum}",
            "choice": "one of " + ", ".join(map(repr, self.choices)),
            "step": f"'auto' or a whole number from {self.minimum} to {self.maximum}",
            "unit": f"'auto' or a unit's number from {self.minimum} to {self.maximum}",
            "text": f"visible text of at most {self.maximum} characters",
            "image": "an image as base64, with or without a data: URL prefix, or null",
        }[self.kind]

    def accept(self, name: str, value: Any) -> Any:
        """Return `value` in its canonical form, or raise SettingsError under the name `name`.

        A bool is no number and a number no bool. A number may come as an integer, and a whole
        number as an integral float such as 5.0, because JavaScript knows no difference. Text is
        neither, whatever it reads like.
        """
        accepted, result = getattr(self, f"_{self.kind}")(value)
        if not accepted:
            raise SettingsError(name, value, self.allowed, self._quoted(value))
        return result

    def _quoted(self, value: Any) -> str:
        """A hint where the right value has come as text."""
        if not isinstance(value, str):
            return ""
        if self.kind == "flag" and value.strip().lower() in ("true", "false"):
            return " (true or false is wanted here, not text)"
        if self.kind in ("number", "integer", "step", "unit") and _is_number(value):
            return " (a number is wanted here, not text)"
        return ""

    def _flag(self, value: Any) -> tuple[bool, Any]:
        return isinstance(value, bool), value

    def _number(self, value: Any) -> tuple[bool, Any]:
        if not self._in_range(value):
            return False, None
        return True, float(value) + 0.0  # so that -0.0 becomes 0.0

    def _integer(self, value: Any) -> tuple[bool, Any]:
        if not self._in_range(value) or int(value) != value:
            return False, None
        return True, int(value)

    def _in_range(self, value: Any) -> bool:
        number = not isinstance(value, bool) and isinstance(value, Real)
        return number and bool(self.minimum <= value <= self.maximum)  # false for NaN

    def _choice(self, value: Any) -> tuple[bool, Any]:
        if not isinstance(value, str) or value not in self.choices:
            return False, None
        return True, self.choices[self.choices.index(value)]

    def _step(self, value: Any) -> tuple[bool, Any]:
        if isinstance(value, str) and value == "auto":
            return True, "auto"
        return self._integer(value)

    _unit = _step

    def _text(self, value: Any) -> tuple[bool, Any]:
        if not isinstance(value, str):
            return False, None
        text = " ".join(value.split())
        return len(text) <= self.maximum and not has_hidden(text), text

    def _image(self, value: Any) -> tuple[bool, Any]:
        if value is None:
            return True, None
        if not isinstance(value, str) or len(value) > IMAGE_LIMIT:
            return False, None
        text = "".join(value.split())
        try:
            return len(image_bytes(text)) > 0, text
        except ValueError:
            return False, None

    def plain(self, value: Any) -> Any:
        """Return an accepted `value` as JSON has it."""
        return value

    def to_infotext(self, value: Any) -> str:
        """Return `value` as text that the WebUI's infotext carries unchanged.

        The WebUI quotes what has a comma or a colon in it, and takes the quotes off again. What it
        would still read as something else gets its first character percent-encoded: `12x34`, a
        first quote that it did not write itself, and what equals its own key.
        """
        if self.kind == "image":
            # Enough to tell which mask it was; the picture itself would be megabytes.
            return hashlib.sha256(image_bytes(value)).hexdigest()[:10]
        text = str(value)
        if self.kind == "text":
            if unquote(text) != text:
                text = text.replace("%", "%25")
            bare_quote = text.startswith('"') and not re.search("[,:]", text)
            if bare_quote or re.fullmatch(r"\d+x\d+", text) or text == self.infotext:
                text = "".join(f"%{byte:02X}" for byte in text[0].encode()) + text[1:]
        return text

    def from_infotext(self, name: str, value: Any) -> Any:
        """Return the value that `to_infotext` wrote; raises SettingsError as `accept` does.

        Texts of before have commas, colons, quotes and percent signs percent-encoded throughout.
        """
        read = value
        if isinstance(value, str):
            if self.kind == "flag":
                read = {"true": True, "false": False}.get(value.strip().lower(), value)
            elif self.kind == "text":
                read = unquote(value)
            elif self.kind in ("number", "integer", "step", "unit") and value != "auto":
                try:
                    read = float(value)
                except ValueError:
                    read = value
        return self.accept(name, read)

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of this one setting."""
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        types: dict[str, dict[str, Any]] = {
            "flag": {"type": "boolean"},
            "number": {"type": "number", **bounds},
            "integer": {"type": "integer", **bounds},
            "choice": {"type": "string", "enum": list(self.choices)},
            "step": {"anyOf": [{"const": "auto"}, {"type": "integer", **bounds}]},
            "unit": {"anyOf": [{"const": "auto"}, {"type": "integer", **bounds}]},
            "text": {"type": "string", "maxLength": self.maximum},
            "image": {"type": ["string", "null"], "contentEncoding": "base64"},
        }
        head = {"title": self.label, "description": self.help, "default": self.default}
        return {**types[self.kind], **head}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def image_bytes(text: str) -> bytes:
    """Decode base64, with or without a data: URL prefix; raises ValueError."""
    payload = _DATA_URL.sub("", text, count=1) if text[:5].lower() == "data:" else text
    return base64.b64decode(payload, validate=True)

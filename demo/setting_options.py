"""The options of the method's settings, made from `lib_ccn.settings`, and what they read."""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_ccn.families import FAMILIES
from lib_ccn.settings import VERSION, Setting
from lib_ccn.showable import showable


def add_setting(group: argparse._ArgumentGroup, name: str, setting: Setting) -> None:
    """Add the option of one setting."""
    default = repr(setting.default)
    flux = FAMILIES["flux"].defaults.get(name)
    more = default if flux is None else f"{default}, FLUX {flux!r}"
    options = [f"--{name.replace('_', '-')}"]
    if name == "foreground_word":
        options.append("--word")
        more = "the bundled examples' own nouns; for your prompt, found automatically"
    if setting.kind == "image":
        more = "none"
    help_text = f"{setting.help} (default: {more})".replace("%", "%%")
    if setting.kind == "flag":
        group.add_argument(
            *options, dest=name, action=argparse.BooleanOptionalAction, help=help_text
        )
        return
    metavar = {"choice": "|".join(setting.choices), "image": "FILE", "text": "WORD"}
    metavar["layers"] = "LIST"
    metavar |= dict.fromkeys(("step", "unit"), "N")
    readers: dict[str, Callable[[str], Any]] = {"image": _read_mask, "choice": str, "text": str}
    readers["layers"] = str
    group.add_argument(
        *options,
        dest=name,
        type=readers.get(setting.kind, _number_or_text),
        metavar=metavar.get(setting.kind, "X"),
        help=help_text,
    )


def _number_or_text(text: str) -> float | str:
    """What is no number stays text: a word such as "auto", or for the setting to refuse."""
    try:
        return float(text)
    except ValueError:
        return text


def _read_mask(name: str) -> str:
    """The file as base64; it is decoded here too, since only here its name is known."""
    from lib_ccn.images import ImageError, read_picture  # imports torch, which takes seconds

    try:
        read_picture(Path(name))
        return base64.b64encode(Path(name).read_bytes()).decode()
    except (OSError, ImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise argparse.ArgumentTypeError(f"{showable(name)} cannot be read: {reason}") from error


def read_json(text: str) -> dict[str, Any]:
    """Settings by name: of JSON, of a file of it, or of a preset's file as the page saves it."""
    try:
        is_json = text.lstrip().startswith("{")
        values = json.loads(text if is_json else Path(text).read_text("utf-8-sig"))
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{showable(text)} cannot be read: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"this is no JSON: {error}") from error
    version = {}
    if isinstance(values, dict) and {"name", "settings"} <= values.keys():
        version = {"version": values.get("version", VERSION)}
        values = values["settings"]
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError("expected a JSON object of names and values")
    return {**values, **version}

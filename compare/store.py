"""Pictures kept in a folder, each with a record of how it was asked for, to go on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .made import Made

PICTURES, CONDITIONS = "pictures", "conditions"


@dataclass(frozen=True)
class Kept:
    """A picture in the folder.

    Attributes:
        picture, strip: their files; `strip` is None where the method gave none.
        record: `asked`, and what `Made` says beside the pictures.
    """

    picture: Path
    strip: Path | None
    record: Mapping[str, Any]


class Store:
    """The pictures of one output folder.

    A picture counts only if its record is there and asks for the same: the record is written last,
    and removed first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PICTURES
        self.folder.mkdir(parents=True, exist_ok=True)

    def find(self, name: str, asked: Mapping[str, Any]) -> Kept | None:
        """The picture of that name, if it was asked for in the same way and is whole."""
        picture, strip, note = self._paths(name)
        try:
            record = json.loads(note.read_text("utf-8"))
            if record["asked"] != _plain(asked):
                return None
            for path in (picture, strip) if record["strip"] else (picture,):
                with Image.open(path) as file:
                    file.load()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Kept(picture, strip if record["strip"] else None, record)

    def keep(self, name: str, asked: Mapping[str, Any], made: Made) -> Kept:
        """Write a picture, in place of one that was asked for otherwise; raises OSError."""
        picture, strip, note = self._paths(name)
        for path in (note, strip):
            path.unlink(missing_ok=True)
        _write_picture(picture, made.picture)
        if made.strip is not None:
            _write_picture(strip, made.strip)
        record = {
            "asked": _plain(asked),
            "strip": made.strip is not None,
            "seconds": made.seconds,
            "step_seconds": made.step_seconds,
            "done": made.done,
            "note": made.note,
        }
        write_text(note, json.dumps(record, indent=1) + "\n")
        return Kept(picture, None if made.strip is None else strip, record)

    def keep_condition(self, name: str, condition: Image.Image) -> None:
        """Write a condition, for whoever wants to use it elsewhere; raises OSError."""
        folder = self.folder.with_name(CONDITIONS)
        folder.mkdir(exist_ok=True)
        _write_picture(folder / f"{name}.png", condition)

    def _paths(self, name: str) -> tuple[Path, Path, Path]:
        return (
            self.folder / f"{name}.png",
            self.folder / f"{name}-strip.png",
            self.folder / f"{name}.json",
        )


def write_text(path: Path, text: str) -> None:
    """Write a file whole, or not at all; raises OSError."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


def _write_picture(path: Path, picture: Image.Image) -> None:
    part = path.with_name(path.name + ".part")
    picture.save(part, "PNG")
    os.replace(part, path)


def _plain(asked: Mapping[str, Any]) -> Any:
    """As it comes back from JSON, where tuples are lists."""
    return json.loads(json.dumps(asked))

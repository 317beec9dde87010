"""Named presets: the built-in ones, and one JSON file for each that a user saved.

A preset always gives every setting of the method (`METHOD`). Which unit and which word is the
foreground (`SCENE`) belongs to a picture rather than to the method: a preset gives those only
where they were not left to chance when it was saved, so that choosing "SDXL" keeps the word that
was typed. Nothing of the WebUI is imported before `default_store` is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import re
import threading
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import VERSION, Settings, SettingsError, fields, page_message
from ..showable import has_hidden, showable, shown_value

__all__ = ["BUILT_IN", "METHOD", "SCENE", "Preset", "PresetError", "PresetStore", "default_store"]

NAME_LIMIT = 80
FILE_LIMIT = 64 * 1024
COUNT_LIMIT = 500

SCENE = ("foreground_unit", "background_unit", "foreground_word", "layers")
# What is left out says whether and how to run, not what the method does.
PRESET_FIELDS = tuple(
    name for name in fields() if name not in ("enabled", "strict", "mask_image", "show_mask")
)
METHOD = tuple(name for name in PRESET_FIELDS if name not in SCENE)


# Between looking which file has a name and writing it, no other tab may do the same.
_WRITING = threading.Lock()


class PresetError(ValueError):
    """A preset cannot be read, saved or deleted; the message says which and why."""

    def __init__(self, message: str) -> None:
        super().__init__(showable(message))


@dataclass(frozen=True)
class Preset:
    """A preset: its name, plain setting values by name, and what it is for in one line.

    `replaced` is the name of the preset whose place it took when it was saved, where that was
    written otherwise.
    """

    name: str
    settings: dict[str, Any]
    description: str = ""
    built_in: bool = False
    replaced: str = ""


# Every value is written out, so that a new default does not change what a preset means.
_PAPER: dict[str, Any] = {
    "fusion": "pix+channel",
    "delta": 0.7,
    "inject": True,
    "start_step": "auto",
    "start_layer": 0,
    "mask_source": "word",
    "mask_threshold": 0.65,
    "mask_reduction": 4,
    "foreground_gain": 1.0,
    "outside_places": "sum",
}

_BUILT_IN = (
    Preset(
        "Paper (SD 1.5)",
        _PAPER,
        "As in the paper, for Stable Diffusion 1.5: PixFusion + ChannelFusion, injection after a "
        "tenth of the steps.",
        built_in=True,
    ),
    Preset(
        "Layers",
        {**_PAPER, "fusion": "layers", "inject": False},
        "Each unit in front has its place, by a word of the prompt; elsewhere all are added up.",
        built_in=True,
    ),
    Preset(
        "PixFusion only",
        {**_PAPER, "fusion": "pix", "inject": False},
        "Only the choice of the stronger unit in each place: no mask, no word and hardly any "
        "extra time.",
        built_in=True,
    ),
    Preset(
        "SDXL",
        _PAPER,
        "As the paper for Stable Diffusion 1.5: the mask is read at a quarter of the latent's "
        "size, 32x32 at 1024x1024.",
        built_in=True,
    ),
    Preset(
        "Complementary conditions",
        {**_PAPER, "delta": 0.3, "inject": False},
        "For units that agree (depth and edges of one photo): averages them wherever they do "
        "not contradict each other, and leaves out KV-Injection, which settles conflicts.",
        built_in=True,
    ),
)

BUILT_IN: dict[str, dict[str, Any]] = {preset.name: preset.settings for preset in _BUILT_IN}


class PresetStore:
    """The built-in presets and those of one folder, which is made by the first `save`.

    The folder is read at each call, so that several tabs, and files that were copied into it, are
    seen. A file that cannot be used is named by `problems` and skipped. Two names are the same
    preset when they differ only in capitals or in how their characters are composed; "Straße" and
    "STRASSE" differ in a letter.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def all(self) -> list[Preset]:
        """Return every preset, built-in ones first, the others by name."""
        return [*_BUILT_IN, *(preset for preset, _ in self._read()[0].values())]

    def names(self) -> list[str]:
        """Return every preset's name in the order of `all`."""
        return [preset.name for preset in self.all()]

    def problems(self) -> list[str]:
        """Return what of the folder cannot be used and why, one line each."""
        return self._read()[1]

    def load(self, name: str) -> dict[str, Any]:
        """Return the preset's plain setting values: all of `METHOD`, and what it has of `SCENE`.

        Raises PresetError if there is none of that name.
        """
        key = _key(_checked(name))
        known = {_key(preset.name): preset for preset in self.all()}
        if key not in known:
            raise PresetError(_unknown(name, [preset.name for preset in known.values()]))
        return dict(known[key].settings)

    def save(self, name: str, values: Mapping[str, Any]) -> Preset:
        """Save the values under that name, in place of a preset that has it, and return it.

        The result's `replaced` tells where that one's capitals were others.
        `values` may hold any settings by name; those that are no part of a preset are left out.
        Raises PresetError for a name that cannot be used or a folder that cannot be written,
        SettingsError for a refused value.
        """
        name = _checked(name)
        preset = Preset(name, _settings_of(values))
        key = _key(name)
        if _is_built_in(name):
            raise PresetError(f"preset {name!r} is built in and cannot be overwritten")
        content = {"name": name, "version": VERSION, "settings": preset.settings}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with _WRITING:
            found, _ = self._read()
            if key not in found and len(found) >= COUNT_LIMIT:
                raise PresetError(f"preset {name!r} is not saved: there are {COUNT_LIMIT} already")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _write(found[key][1] if key in found else self._free_path(name), text)
            except OSError as error:
                raise PresetError(f"preset {name!r} is not saved: {_cause(error)}") from error
        before = found[key][0].name if key in found else name
        return preset if before == name else dataclasses.replace(preset, replaced=before)

    def delete(self, name: str) -> None:
        """Delete a saved preset.

        Raises PresetError if it is built in, there is none, or its file cannot be removed.
        """
        name = _checked(name)
        key = _key(name)
        if _is_built_in(name):
            raise PresetError(f"preset {name!r} is built in and cannot be deleted")
        with _WRITING:
            found, _ = self._read()
            if key not in found:
                raise PresetError(_unknown(name, [preset.name for preset, _ in found.values()]))
            try:
                found[key][1].unlink(missing_ok=True)
            except OSError as error:
                raise PresetError(f"preset {name!r} is not deleted: {_cause(error)}") from error

    def _read(self) -> tuple[dict[str, tuple[Preset, Path]], list[str]]:
        """Return the usable presets with their files, by key, sorted by name; and the problems."""
        problems: list[str] = []
        found: dict[str, tuple[Preset, Path]] = {}
        try:
            paths = list(self._paths())
        except OSError as error:
            return {}, [f"presets folder {showable(self.folder)}: {_cause(error)}"]
        if len(paths) > COUNT_LIMIT:
            problems.append(f"presets folder: only the first {COUNT_LIMIT} files are read")
        for path in paths[:COUNT_LIMIT]:
            try:
                preset = _parse(path)
            except FileNotFoundError:  # another tab has just deleted it
                continue
            except (OSError, ValueError, RecursionError) as error:
                problems.append(f"preset file {shown_value(path.name)}: {_cause(error)}")
                continue
            key = _key(preset.name)
            if _is_built_in(preset.name):
                problems.append(f"preset file {shown_value(path.name)}: its name is a built-in one")
            elif key in found:
                other = shown_value(found[key][1].name)
                problems.append(
                    f"preset file {shown_value(path.name)}: {other} has the same name already"
                )
            else:
                found[key] = (preset, path)
        return dict(sorted(found.items())), problems

    def _paths(self) -> Iterator[Path]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return
        for name in names:
            path = self.folder / name
            if name.endswith(".json") and not name.startswith(".") and path.is_file():
                yield path

    def _free_path(self, name: str) -> Path:
        """Return a file name that any file system takes, for a name no file has yet."""
        # NFKD leaves the plain letters of accented ones; the hash keeps other scripts apart, and
        # a reserved name such as "con" from being the whole file name.
        letters = re.sub("[^a-z0-9]+", "-", unicodedata.normalize("NFKD", name).lower()).strip("-")
        digest = hashlib.sha256(_key(name).encode()).hexdigest()[:10]
        stem = f"{letters[:40] or 'preset'}-{digest}"
        number = 1
        path = self.folder / f"{stem}.json"
        while path.exists():  # a broken file, or a renamed one
            number += 1
            path = self.folder / f"{stem}-{number}.json"
        return path


def default_store() -> PresetStore:
    """Return the store of this WebUI.

    Its folder is `cross-controlnet-presets` in the WebUI's data folder, outside the extension, so
    that an update or a new installation of the extension keeps it; `--cross-controlnet-presets`
    names another.
    """
    from modules import paths_internal, shared_cmd_options

    chosen = getattr(shared_cmd_options.cmd_opts, "cross_controlnet_presets", None)
    return PresetStore(chosen or Path(paths_internal.data_path, "cross-controlnet-presets"))


def _checked(name: Any) -> str:
    """Return the name in its canonical form, or raise PresetError."""
    text = unicodedata.normalize("NFC", " ".join(name.split())) if isinstance(name, str) else ""
    readable = any(c.isalnum() for c in text) and len(text) <= NAME_LIMIT and not has_hidden(text)
    if not readable:
        raise PresetError(
            f"preset name {shown_value(name)} is refused: expected visible text of at most "
            f"{NAME_LIMIT} characters with a letter or digit"
        )
    return text


def _key(name: str) -> str:
    """The same for names that differ in nothing but capitals and how characters are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())


def _alike(name: str) -> str:
    """The same for names that a reader could take for each other."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


_RESERVED = frozenset(_alike(name) for name in BUILT_IN)


def _is_built_in(name: str) -> bool:
    return _alike(name) in _RESERVED


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    more = ", ..." if len(known) > 8 else ""
    choices = ", ".join(map(repr, known[:8])) + more if known else "none is saved"
    return f"there is no preset {shown_value(name)}{hint}: expected one of {choices}"


def _settings_of(values: Mapping[str, Any], version: Any = VERSION) -> dict[str, Any]:
    """Return the part of a preset, complete and checked; raises SettingsError."""
    if not isinstance(values, Mapping):
        raise SettingsError("settings", values, "a mapping of names to values")
    taken = {k: v for k, v in values.items() if k in PRESET_FIELDS or k not in fields()}
    settings = Settings.from_dict({**taken, "version": version})
    plain = settings.to_dict()
    scene = {name for name in SCENE if getattr(settings, name) != fields()[name].default}
    return {name: plain[name] for name in (*METHOD, *SCENE) if name in METHOD or name in scene}


def _parse(path: Path) -> Preset:
    """Read one file; raises OSError, ValueError or RecursionError."""
    with path.open("rb") as file:
        data = file.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise PresetError(f"it is larger than {FILE_LIMIT // 1024} KiB")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PresetError("it is no JSON text") from error
    if not isinstance(content, dict) or not {"name", "settings"} <= set(content):
        raise PresetError('it has no "name" and "settings"')
    settings = _settings_of(content["settings"], content.get("version", VERSION))
    return Preset(_checked(content["name"]), settings)


def _write(path: Path, text: str) -> None:
    """Write the file whole or not at all; raises OSError."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    # The new name itself is only safe once the folder is written; Windows cannot open one.
    with contextlib.suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cause(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return page_message(error) or type(error).__name__

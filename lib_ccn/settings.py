"""Every setting of the method, in one place.

A setting's default, range or choices, label, help and infotext name live on its field of
`Settings`; the page, the API's schema, infotext and presets are made from `fields()`. Only the
standard library is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .layers import Layer, LayersSetting
from .schema import MESSAGE_LIMIT, Setting, SettingsError
from .showable import showable, shown_value

__all__ = [
    "TITLE",
    "VERSION",
    "Setting",
    "Settings",
    "SettingsError",
    "fields",
    "infotext_of",
    "json_schema",
    "page_message",
]

TITLE = "Cross-ControlNet"
VERSION = 4
# Defaults that were others before: what settings of version 1, and pictures' texts that do not
# write them, mean by leaving them out.
_FORMER = {"start_step": 5}
WORD_LIMIT = 200
UNIT_LIMIT = 99
NAME_LIMIT = 60

log = logging.getLogger(__name__)


def _setting(
    kind: Any,
    default: Any,
    label: str,
    infotext: str,
    help: str,
    of: type[Setting] = Setting,
    **more: Any,
) -> Any:
    setting = of(kind, default, label, help, infotext, **more)
    return dataclasses.field(default=default, metadata={"setting": setting})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one generation, checked when made; raises SettingsError.

    `mask_source` "image" without a `mask_image` is accepted here, because presets and infotext
    carry no image; `check_usable` refuses it when a generation begins.
    """

    enabled: bool = _setting("flag", False, "Enable", "CCN enabled", "Use Cross-ControlNet.")
    fusion: str = _setting(
        "choice",
        "pix+channel",
        "Fusion mode",
        "CCN fusion",
        "How the residuals of the units become one: PixFusion with ChannelFusion on the middle "
        "residual (the paper's method), layers (a unit in front counts alone in its own place, and "
        "all are added elsewhere, or what you choose below), PixFusion alone, MaxFusion, the "
        "average, or the plain sum that the host makes itself.",
        choices=("pix+channel", "layers", "pix", "max", "mean", "sum"),
        titles=(
            "PixFusion + ChannelFusion (the paper)",
            "layers (each unit its place)",
            "PixFusion",
            "MaxFusion",
            "average",
            "plain sum (off)",
        ),
    )
    delta: float = _setting(
        "number",
        0.7,
        "Delta",
        "CCN delta",
        "How alike two units must be in one place to be averaged there instead of the stronger "
        "one winning. 0 averages nearly everywhere; 1 shows a rim around the foreground.",
        maximum=1,
        step=0.05,
    )
    inject: bool = _setting(
        "flag",
        True,
        "KV-Injection",
        "CCN injection",
        "Let the background units look at the foreground unit's keys and values.",
    )
    start_step: int | str = _setting(
        "step",
        "auto",
        "Injection start step",
        "CCN start step",
        "First sampling step with KV-Injection, counted from 0; 'auto' is after a tenth of the "
        "steps (the paper: 5 of 50).",
        maximum=150,
    )
    start_layer: int = _setting(
        "integer",
        0,
        "Injection start layer",
        "CCN start layer",
        "First ControlNet attention block with KV-Injection, counted from 0; it stays on up to "
        "the middle block (SD 1.5: 6, SDXL: 4).",
        maximum=40,
    )
    foreground_unit: int | str = _setting(
        "unit",
        "auto",
        "Foreground unit",
        "CCN foreground unit",
        "The ControlNet unit that shows the foreground object, counted from 0; 'auto' takes the "
        "first eligible one.",
        maximum=UNIT_LIMIT,
    )
    background_unit: int | str = _setting(
        "unit",
        "auto",
        "Background unit",
        "CCN background unit",
        "The ControlNet unit that KV-Injection works on, counted from 0; 'auto' takes every "
        "eligible one but the foreground unit. All eligible units are fused.",
        maximum=UNIT_LIMIT,
    )
    foreground_word: str = _setting(
        "text",
        "",
        "Foreground word",
        "CCN foreground word",
        "Word or phrase of the prompt that names the foreground object; empty chooses one "
        "automatically.",
        maximum=WORD_LIMIT,
    )
    mask_source: str = _setting(
        "choice",
        "word",
        "Foreground mask from",
        "CCN mask source",
        "Where the foreground is: from the attention to the foreground word, the whole picture, "
        "a mask image, or the silhouette in the foreground unit's condition image.",
        choices=("word", "all", "image", "silhouette"),
        titles=(
            "the word's attention",
            "whole picture",
            "a painted mask",
            "the condition's silhouette",
        ),
    )
    mask_threshold: float = _setting(
        "number",
        0.65,
        "Mask threshold",
        "CCN mask threshold",
        "Attention from which on a place is foreground; 0 is the map's minimum, 1 its maximum.",
        maximum=1,
        step=0.05,
    )
    mask_reduction: int = _setting(
        "integer",
        4,
        "Mask reduction",
        "CCN mask reduction",
        "Which attention maps are read for the word: those whose sides are the latent's divided "
        "by this (the paper: 4, which is 16x16 tokens at 512x512).",
        minimum=1,
        maximum=8,
    )
    mask_image: str | None = _setting(
        "image",
        None,
        "Mask image",
        "CCN mask image",
        "White where the foreground is; used when the foreground mask comes from an image.",
    )
    show_mask: bool = _setting(
        "flag",
        False,
        "Show what was done",
        "CCN show mask",
        "Adds a strip to the results: mask, and which unit won where.",
    )
    layers: tuple[Layer, ...] = _setting(
        "layers",
        (),
        "Layers",
        "CCN layers",
        "The units in front, from front to back, each with the word of the prompt that names what "
        "it shows, such as '0 dancer, 1 horse'; what is not listed is behind. Empty: the "
        "foreground unit alone.",
        of=LayersSetting,
        parts=lambda: _layer_parts(),
    )
    foreground_gain: float = _setting(
        "number",
        1.0,
        "Foreground gain",
        "CCN foreground gain",
        "With layers: what a unit in front is multiplied by in its own place.",
        minimum=0.5,
        maximum=2,
        step=0.05,
    )
    outside_places: str = _setting(
        "choice",
        "sum",
        "Outside all places",
        "CCN outside places",
        "With layers: what is done where no unit in front has its place. All are added up, as "
        "the host does it; or the paper's fusion chooses, which keeps more where several are in "
        "front.",
        choices=("sum", "pix+channel"),
        titles=("all are added up", "PixFusion + ChannelFusion (the paper)"),
    )
    strict: bool = _setting(
        "flag",
        False,
        "Stop on errors",
        "CCN strict",
        "Refuse the generation when a setting is wrong or the method fails, instead of making "
        "the picture as the host would.",
    )

    def __post_init__(self) -> None:
        for name, setting in _FIELDS.items():
            object.__setattr__(self, name, setting.accept(name, getattr(self, name)))
        for name in ("foreground_unit", "foreground_word") if self.layers else ():
            value, default = getattr(self, name), _FIELDS[name].default
            if value not in (default, getattr(self.layers[0], name.removeprefix("foreground_"))):
                raise SettingsError(name, value, f"{default!r}, as layers says who is in front")
        fronts = {layer.unit for layer in self.layers_in_front}
        if self.background_unit != "auto" and self.background_unit in fronts:
            others = "layers" if self.layers else "foreground_unit"
            raise SettingsError(
                "background_unit", self.background_unit, f"another unit than {others}"
            )

    @property
    def layers_in_front(self) -> tuple[Layer, ...]:
        """Who is in front, front to back, each with its own mask's source and threshold.

        Without `layers` it is the foreground unit, with the foreground word. An entry with a word
        is where its word is, though the others' mask be the whole picture.
        """
        listed = self.layers or (Layer(self.foreground_unit, self.foreground_word),)
        worded = "word" if self.layers and self.mask_source == "all" else self.mask_source
        return tuple(
            dataclasses.replace(
                layer,
                mask_source=layer.mask_source or (worded if layer.word else self.mask_source),
                mask_threshold=(
                    self.mask_threshold if layer.mask_threshold is None else layer.mask_threshold
                ),
                mask_image=layer.mask_image or self.mask_image,
            )
            for layer in listed
        )

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Settings:
        """Build settings from plain values, as in JSON; what is missing takes its default.

        "version" may be missing; settings of an older one mean what they meant then. A newer
        version than this one loads what is known here and ignores other names with a warning;
        otherwise an unknown name raises SettingsError, as does any refused value.
        """
        if not isinstance(mapping, Mapping):
            raise SettingsError("settings", mapping, "a mapping of names to values")
        values = dict(mapping)
        version = _VERSION.accept("version", values.pop("version", VERSION))
        unknown = [name for name in values if name not in _FIELDS]
        if unknown and version > VERSION and all(isinstance(name, str) for name in unknown):
            log.warning("settings of version %d: ignored %s", version, shown_value(unknown))
            values = {name: values[name] for name in values if name in _FIELDS}
        else:
            _check_names(values)
        return cls(**({**_FORMER, **values} if version < 2 else values))

    @classmethod
    def from_readable(cls, mapping: Mapping[str, Any]) -> tuple[Settings, list[SettingsError]]:
        """Build settings from what of plain values can be used, and say what cannot, and why.

        What is refused takes its default, as does what is missing.
        """
        left: Mapping[str, Any] = mapping
        errors: list[SettingsError] = []
        while True:
            try:
                return cls.from_dict(left), errors
            except SettingsError as error:
                errors.append(error)
                known = ("version", *_FIELDS)
                left = {k: left[k] for k in known if k in left and k != error.field}

    def to_dict(self, only_changed: bool = False) -> dict[str, Any]:
        """Return plain values for JSON, with "version"; `only_changed` leaves out defaults."""
        values = {name: getattr(self, name) for name in _FIELDS}
        if only_changed:
            values = {k: v for k, v in values.items() if v != _FIELDS[k].default}
        return {"version": VERSION, **{k: _FIELDS[k].plain(v) for k, v in values.items()}}

    def replace(self, **changes: Any) -> Settings:
        """Return a copy with some settings changed; raises SettingsError."""
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def to_infotext(self) -> dict[str, str]:
        """Return infotext names and texts of what is not default; nothing when not enabled.

        A setting whose default was another once is always written. `mask_image` is noted as a
        short hash of its bytes, for the reader only.
        """
        if not self.enabled:
            return {}
        written = {*self.to_dict(only_changed=True), *_FORMER}
        changed = {name: getattr(self, name) for name in _FIELDS if name in written}
        return {_FIELDS[k].infotext: _FIELDS[k].to_infotext(v) for k, v in changed.items()}

    @classmethod
    def from_infotext(cls, mapping: Mapping[str, Any]) -> Settings:
        """Build settings from pasted infotext: `to_infotext` backwards, except `mask_image`.

        Other names and None are ignored; what is missing takes its default, so a picture made
        without the method gives `Settings()`. Raises SettingsError for an unreadable value.
        """
        texts = infotext_of(mapping)
        return cls(**{name: _FIELDS[name].from_infotext(name, texts[name]) for name in texts})

    @property
    def injection_start(self) -> int:
        """`start_step`, once it is a number; see `at_steps`."""
        assert isinstance(self.start_step, int)
        return self.start_step

    def at_steps(self, steps: int) -> Settings:
        """Return these settings for a sampler of so many steps: an automatic start is a number.

        It is a tenth of them, rounded, as the paper's 5 is of 50.
        """
        start = int(steps / 10 + 0.5) if self.start_step == "auto" else self.start_step
        return self.replace(start_step=start)

    @property
    def uses_masks(self) -> bool:
        """Whether there is use for knowing where the units in front have their places."""
        return self.inject or self.show_mask or self.fusion == "layers"

    @property
    def without_places(self) -> str:
        """The fusion where no unit in front has its place."""
        return self.outside_places if self.fusion == "layers" else self.fusion

    @property
    def layers_over_fusion(self) -> bool:
        """Whether a unit in front has its place, and units are fused, not added up, elsewhere."""
        return self.fusion == "layers" and self.outside_places != "sum"

    @property
    def given_words(self) -> tuple[str, ...]:
        """The words that the user named, whose places are to be found; each once."""
        named = (one.word for one in self.layers_in_front if one.mask_source == "word")
        return tuple(dict.fromkeys(filter(None, named)))

    @property
    def reads_word(self) -> bool:
        """Whether there is use for a mask that comes from a word of the prompt."""
        sources = [layer.mask_source for layer in self.layers_in_front]
        return self.uses_masks and "word" in sources

    def check_usable(self) -> None:
        """Raise SettingsError if a mask image is called for and there is none."""
        for layer in self.layers_in_front if self.uses_masks else ():
            if layer.mask_source == "image" and layer.mask_image is None:
                raise SettingsError("mask_image", None, "an image, because mask_source is 'image'")


_FIELDS: dict[str, Setting] = {
    f.name: cast(Setting, f.metadata["setting"]) for f in dataclasses.fields(Settings)
}


def _layer_parts() -> dict[str, Setting]:
    """What an entry of `layers` may have, each with the setting that says what it may be."""
    unit = Setting("integer", 0, "Unit", "The unit's number, counted from 0.", "", 0, UNIT_LIMIT)
    names = ("mask_source", "mask_threshold", "mask_image")
    word = _FIELDS["foreground_word"]
    return {"unit": unit, "word": word, **{name: _FIELDS[name] for name in names}}


# Short names are words of the language too.
_LONG_NAME = re.compile(r"\b(?:" + "|".join(name for name in _FIELDS if "_" in name) + r")\b")
_VERSION = Setting("integer", VERSION, "Version", "Version of these settings.", "", 1, 10**6)


def fields() -> dict[str, Setting]:
    """Return every setting by name, in the order of the page."""
    return dict(_FIELDS)


def infotext_of(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return each setting's text in pasted infotext, by its name, except `mask_image`'s.

    Texts of the time when a default was another have that one.
    """
    texts = {k: mapping.get(s.infotext) for k, s in _FIELDS.items() if s.kind != "image"}
    former = _FORMER if texts["enabled"] is not None else {}
    given = {name: text for name, text in texts.items() if text is not None}
    return {**{name: str(value) for name, value in former.items()}, **given}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of what `Settings.from_dict` takes."""
    properties = {"version": _VERSION.json_schema()}
    properties.update({name: setting.json_schema() for name, setting in _FIELDS.items()})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Cross-ControlNet settings",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def page_message(error: Exception) -> str:
    """Return the error's message with the page's labels, each with the name that the API knows."""
    if not isinstance(error, SettingsError) or error.field not in _FIELDS:
        return showable(error)
    name = _labelled(error.field)
    allowed = _LONG_NAME.sub(lambda match: _labelled(match[0]), error.allowed)
    if _FIELDS[error.field].kind == "image" and error.value is None:
        return showable(f"{name} is missing: expected {allowed}", MESSAGE_LIMIT)
    return error.told(name, allowed)


def _labelled(name: str) -> str:
    return f"{_FIELDS[name].label} ({name})"


def _check_names(values: Mapping[Any, Any]) -> None:
    for name, value in values.items():
        if isinstance(name, str) and name in _FIELDS:
            continue
        shown = shown_value(name)
        if isinstance(name, str) and len(name) <= NAME_LIMIT:
            shown = showable(name)
        near = difflib.get_close_matches(shown.lower(), _FIELDS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SettingsError(shown, value, "a setting named " + ", ".join(_FIELDS), hint)

"""What an "Apply Cross-ControlNet" node has been told, and what becomes of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from ..outcome import Account
from ..place import Place
from ..session import Session
from ..settings import Settings, SettingsError
from ..units import Unit
from ..webui.pictures import Result
from ..winners import Decision
from .words import PromptWord

# What is chosen here, and what it is called in the settings of all hosts.
AUTOMATIC = "automatic"
MASK_SOURCES = {
    AUTOMATIC: "",
    "word": "word",
    "mask": "image",
    "silhouette": "silhouette",
    "whole picture": "all",
}
ANY_UNIT = -1


@dataclass(frozen=True)
class Plan:
    """The settings of a node.

    Attributes:
        settings: all that other hosts have too; `start_step` is another one at each run.
        injection_start: the share of the steps after which injection begins.
        span: the part of the sampling, as shares of its noise levels, in which units are fused.
        word: the foreground word in its prompt, or None.
        masks: bool [pictures or 1, H, W] for the mask source "image", by the text of the setting
            that each is from; None is the node's own.
    """

    settings: Settings
    injection_start: float = 0.1
    span: tuple[float, float] = (0.0, 1.0)
    word: PromptWord | None = None
    masks: Mapping[str | None, Tensor] = field(default_factory=dict)

    def settings_for(self, steps: int) -> Settings:
        """The settings of a sampling of so many steps."""
        return self.settings.replace(start_step=int(steps * self.injection_start + 0.5))

    def masks_for(self, pictures: int) -> dict[str | None, Tensor]:
        """The masks, each one for all or one for every picture."""
        return {
            text: mask
            if len(mask) in (1, pictures)
            else mask[[n % len(mask) for n in range(pictures)]]
            for text, mask in self.masks.items()
        }


@dataclass(frozen=True, eq=False)
class InFront:
    """A ControlNet that is in front of others, as a layer node has been told.

    Attributes:
        unit: counted from 0, the first that was applied.
        word: of the prompt; "" for none.
        mask: bool [pictures or 1, H, W], or None.
        threshold: of the word's mask.
    """

    unit: int
    word: str = ""
    mask: Tensor | None = None
    threshold: float | None = None

    def entry(self) -> dict[str, Any]:
        """Its entry of the setting `layers`."""
        found: dict[str, Any] = {"unit": self.unit, "word": self.word}
        if self.mask is not None:
            found |= {"mask_source": "image", "mask_image": _as_text(self.mask)}
        elif self.word:
            found |= {"mask_source": "word", "mask_threshold": self.threshold}
        return found


def _as_text(mask: Tensor) -> str:
    """A mask as the setting of an image is written: the text by which it is known again."""
    file = io.BytesIO()
    Image.fromarray(mask[0].to(torch.uint8).mul(255).numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def plan_of(
    fusion: str,
    delta: float,
    injection: bool,
    mask_source: str = AUTOMATIC,
    word: PromptWord | None = None,
    mask: Any = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    injection_start: float = 0.1,
    foreground_unit: int = ANY_UNIT,
    background_unit: int = ANY_UNIT,
    record: bool = True,
    layers: tuple[InFront, ...] = (),
    is_flux: bool = False,
    **more: Any,
) -> Plan:
    """What a node has been told. Raises SettingsError for what no graph can mean."""
    given = {"word": word, "mask": mask}
    if mask_source in given and given[mask_source] is None:
        allowed = f"a connection, as mask_source is '{mask_source}'"
        raise SettingsError(mask_source, None, allowed)
    if mask_source == AUTOMATIC:
        otherwise = "whole picture" if is_flux else "silhouette"
        connected = [name for name in ("mask", "word") if given[name] is not None]
        mask_source = next(iter(connected), otherwise)
    units = {"foreground_unit": foreground_unit, "background_unit": background_unit}
    values = {
        "fusion": fusion,
        "delta": delta,
        "inject": injection,
        "mask_source": MASK_SOURCES[mask_source],
        "foreground_word": "" if word is None or layers else word.word,
        "layers": [layer.entry() for layer in layers],
        "show_mask": record,
        **{name: "auto" if n == ANY_UNIT else n for name, n in units.items()},
        **more,
    }
    settings = Settings.from_dict(values)
    masks: dict[str | None, Tensor] = {} if mask is None else {None: booleans(mask)}
    for layer, named in zip(layers, settings.layers, strict=True):
        if layer.mask is not None:
            masks[named.mask_image] = layer.mask
    return Plan(settings, injection_start, (start_percent, end_percent), word, masks)


def booleans(mask: Tensor) -> Tensor:
    """A MASK [B, H, W] or [H, W] in [0, 1] as booleans [B, H, W]."""
    return (mask if mask.ndim == 3 else mask[None]).detach().cpu() > 0.5


@dataclass
class Record:
    """What one sampling did.

    Attributes:
        account: in words.
        result: what there is to show of it.
        masks: of every layer, front to back: bool [pictures, H, W], or None where there is none.
    """

    account: Account
    result: Result = field(default_factory=Result)
    masks: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def of(cls, account: Account, session: Session | None, pictures: int) -> Record:
        """Take it from a run that is over, without its networks."""
        record = cls(account)
        if session is not None:
            record.result.take(session, pictures)
            shown = record.result.decisions
            record.result.decisions = [one and _names_only(one) for one in shown]
            record.masks = _disjoint(session.places.all, pictures)
        return record


@dataclass
class Report:
    """What a node's latest sampling did, for the node that shows it.

    Attributes:
        notes: why there is nothing to fuse, if so.
        records: of the latest sampling, by what was sampled with: a conditioning's ControlNets.
    """

    notes: list[str] = field(default_factory=list)
    records: dict[int, Record] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Remember why something is left to the host."""
        if text not in self.notes:
            self.notes.append(text)

    def account(self) -> Account:
        """All of it."""
        told = [Account(notes=list(self.notes))] if self.notes else []
        told += [record.account for record in self.records.values()]
        if not told:
            return Account(notes=["nothing was sampled with this conditioning so far"])
        return reduce(lambda one, other: one.joined(other), told)

    def shown(self) -> Record | None:
        """The record that has most to show."""
        return max(self.records.values(), key=_richness, default=None)


def _names_only(decision: Decision) -> Decision:
    return replace(decision, units=tuple(Unit(Module(), unit.name) for unit in decision.units))


def _disjoint(places: Sequence[Place], pictures: int) -> list[Tensor | None]:
    """Each place's mask of each picture: where two claim a spot, the one in front has it."""
    found: list[Tensor | None] = []
    for place in places:
        mask = None
        if place.mask is not None and place.usable is not None:
            mask = (place.mask & place.usable[:, None, None]).expand(pictures, -1, -1)
            for before in found:
                if before is not None and before.shape == mask.shape:
                    mask = mask & ~before
        found.append(mask)
    return found


def _richness(record: Record) -> tuple[Any, ...]:
    return any(record.result.decisions), bool(record.result.masks), record.result.pictures

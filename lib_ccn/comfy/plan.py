"""What an "Apply Cross-ControlNet" node has been told, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from torch import Tensor
from torch.nn import Module

from ..outcome import Account
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
        mask: bool [pictures or 1, H, W] for the mask source "image".
    """

    settings: Settings
    injection_start: float = 0.1
    span: tuple[float, float] = (0.0, 1.0)
    word: PromptWord | None = None
    mask: Tensor | None = None

    def settings_for(self, steps: int) -> Settings:
        """The settings of a sampling of so many steps."""
        return self.settings.replace(start_step=int(steps * self.injection_start + 0.5))


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
        "foreground_word": "" if word is None else word.word,
        "show_mask": record,
        **{name: "auto" if n == ANY_UNIT else n for name, n in units.items()},
        **more,
    }
    settings = Settings.from_dict(values)
    masks = None if mask is None else _booleans(mask)
    return Plan(settings, injection_start, (start_percent, end_percent), word, masks)


def _booleans(mask: Tensor) -> Tensor:
    """A MASK [B, H, W] or [H, W] in [0, 1] as booleans [B, H, W]."""
    return (mask if mask.ndim == 3 else mask[None]).detach().cpu() > 0.5


@dataclass
class Record:
    """What one sampling did; `result` is what there is to show of it."""

    account: Account
    result: Result = field(default_factory=Result)

    @classmethod
    def of(cls, account: Account, session: Session | None, pictures: int) -> Record:
        """Take it from a run that is over, without its networks."""
        record = cls(account)
        if session is not None:
            record.result.take(session, pictures)
            shown = record.result.decisions
            record.result.decisions = [one and _names_only(one) for one in shown]
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

    def results(self) -> Sequence[Result]:
        """What there is to show, the richest first."""
        found = [record.result for record in self.records.values()]
        return sorted(found, key=_richness, reverse=True)


def _names_only(decision: Decision) -> Decision:
    return replace(decision, units=tuple(Unit(Module(), unit.name) for unit in decision.units))


def _richness(result: Result) -> tuple[Any, ...]:
    return any(result.decisions), bool(result.masks), result.pictures

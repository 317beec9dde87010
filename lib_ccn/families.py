"""The families of models, and what the paper sets differently for one of them.

Only the standard library is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .settings import Settings, SettingsError, fields


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: its name for people.
        steps, guidance_scale: what the paper samples with.
        defaults: settings whose defaults differ from `Settings`' own.
        fixed: settings that mean nothing here; only their default is accepted.
    """

    title: str
    steps: int = 50
    guidance_scale: float = 7.5
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)

    def settings(self, given: Settings | Mapping[str, Any] | None) -> Settings:
        """The settings of a generation.

        A `Settings` object says everything and is taken as it is; in a mapping, what is missing
        takes this family's default.

        Raises:
            SettingsError: a setting is refused, or is of no use in this family.
        """
        if isinstance(given, Settings):
            settings = given
        elif given is None or isinstance(given, Mapping):
            settings = Settings.from_dict({**self.defaults, **(given or {})})
        else:
            settings = Settings.from_dict(given)
        for name, reason in self.fixed.items():
            default = fields()[name].default
            if getattr(settings, name) != default:
                allowed = f"{default!r}, its default: {reason}"
                raise SettingsError(name, getattr(settings, name), allowed)
        return settings


FAMILIES = {
    "sd15": Family("Stable Diffusion 1.5"),
    "sdxl": Family("Stable Diffusion XL"),
    # Appendix A.5 of the paper: FLUX.1-dev.
    "flux": Family(
        "FLUX.1",
        steps=28,
        guidance_scale=3.5,
        defaults={"delta": 0.5, "mask_source": "all"},
        fixed={"mask_reduction": "FLUX attends at one resolution only, that of its image tokens"},
    ),
}

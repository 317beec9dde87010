"""The choices of the accordion's two unit dropdowns: "auto", "0", "1: name of its model"...

A choice is plain text, since gradio 3.41 knows no labels apart from values; what is read of it is
the number that it begins with.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..showable import showable

AUTO = "auto"
_NO_MODEL = ("", "none")


def unit_choices(models: Sequence[str | None]) -> list[str]:
    """Return the choices for units with these models; None or "None" is no model."""
    names = [showable(model).strip() if model is not None else "" for model in models]
    return [AUTO] + [
        f"{number}" if name.lower() in _NO_MODEL else f"{number}: {name}"
        for number, name in enumerate(names)
    ]


def named_choice(value: object, choices: Sequence[str]) -> str:
    """Return the one of `choices` that means the same unit as `value`, or `value` as text."""
    text = str(value)
    number = text.partition(":")[0]
    return next((choice for choice in choices if choice.partition(":")[0] == number), text)

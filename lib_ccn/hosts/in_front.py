"""A function of ours in front of somebody's method, for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def put_in_front(
    owner: Any, name: str, ours: Callable[..., Any], *, stays: bool = False
) -> Callable[[], None]:
    """From now on `owner.name(...)` calls `ours(own, ...)`; other instances are not touched.

    Args:
        owner: the object whose method it is.
        name: of the method.
        ours: gets the method as it was before, and its arguments.
        stays: `ours` knows by itself when it has nothing to do: it goes on being called where
            somebody else keeps it.

    Returns:
        What undoes it. If somebody else has put theirs in front of ours in the meantime, theirs
        stays, and ours only steps aside.
    """
    previous = owner.__dict__.get(name)
    own = getattr(owner, name)
    inside = True

    @functools.wraps(own)
    def instead(*args: Any, **kwargs: Any) -> Any:
        return ours(own, *args, **kwargs) if inside else own(*args, **kwargs)

    instead.is_cross_controlnet = True  # type: ignore[attr-defined]
    owner.__dict__[name] = instead

    def undo() -> None:
        nonlocal inside
        inside = stays
        instead.is_cross_controlnet = False  # type: ignore[attr-defined]
        if owner.__dict__.get(name) is instead:
            del owner.__dict__[name]
            if previous is not None:
                owner.__dict__[name] = previous

    return undo


def is_in_front(owner: Any, name: str) -> bool:
    """Whether `owner.name(...)` calls a function of ours first."""
    return bool(getattr(getattr(owner, name, None), "is_cross_controlnet", False))

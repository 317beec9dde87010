"""A function of ours in front of somebody's method, for a while."""

from __future__ import annotations

import functools
import weakref
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
    instead.owner, instead.previous = weakref.ref(owner), previous  # type: ignore[attr-defined]
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


def free_copy(owner: Any, name: str) -> None:
    """Take from a copied object what was put in front of the original's method.

    A copy has the original's attributes; with ours among them it would call the original.
    """
    found = owner.__dict__.get(name)
    original = getattr(found, "owner", None)
    if isinstance(original, weakref.ref) and original() is not owner:
        del owner.__dict__[name]
        if found.previous is not None:
            owner.__dict__[name] = found.previous

"""The handle that `cross_controlnet` gives, and how it follows the calls of one pipeline object."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ...session import Session
from ...settings import Settings
from ...units import Unit
from .generation import Generation


class CrossControlNet:
    """The generations that a pipeline makes inside a `cross_controlnet` block.

    Attributes:
        pipe: the pipeline.
        settings: in use; assigning others takes effect with the next generation.
        on_fused: called with the session and its units' outputs when a call's are fused.
    """

    def __init__(
        self,
        kind: type[Generation],
        pipe: Any,
        settings: Settings,
        prompt: str | Sequence[str] | None,
        weighted: bool,
    ) -> None:
        self.pipe = pipe
        self.settings = settings
        self.on_fused: Callable[[Session, Mapping[Unit, Any]], None] | None = None
        self._kind = kind
        self._prompt = prompt
        self._weighted = weighted
        self._latest: Generation | None = None

    @property
    def session(self) -> Session | None:
        """Of the generation that began last; None before its first step."""
        return None if self._latest is None else self._latest.session

    @property
    def error(self) -> Exception | None:
        """What made the method stand aside in the generation that began last, if anything did."""
        return None if self._latest is None else self._latest.error

    def summary(self) -> str:
        """What was done in the generation that began last, in one line."""
        return "no generation yet" if self._latest is None else self._latest.summary()

    @contextmanager
    def following(self) -> Iterator[None]:
        """The pipeline's calls are followed inside; afterwards all is as it was."""
        with calls_followed(self.pipe, self._called):
            yield

    def _called(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        generation = self._kind(
            self.pipe, self.settings, self._prompt, self._weighted, self.on_fused
        )
        self._latest = generation
        return generation.run(own, *args, **kwargs)


@contextmanager
def calls_followed(pipe: Any, ours: Callable[..., Any]) -> Iterator[None]:
    """`pipe(...)` is `ours(own, ...)` inside; afterwards all is as it was.

    Python looks for `__call__` on the class, so that the object has a class of its own for the
    while, made from the one it had. What is made of it inside, by `copy`, `pickle` or
    `type(pipe)(...)`, is of the class it had, and free.

    Raises:
        RuntimeError: somebody is following it already.
    """
    kind = type(pipe)
    if getattr(kind, "is_cross_controlnet", False):
        raise RuntimeError(f"this {kind.__name__} is inside another cross_controlnet block")
    pipe.__class__ = _followed(kind, ours)
    try:
        yield
    finally:
        pipe.__class__ = kind


def _followed(kind: Any, ours: Callable[..., Any]) -> type:
    """A class like `kind` for the one object whose calls are `ours(own, ...)`."""

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(functools.partial(kind.__call__, self), *args, **kwargs)

    def new(_class: type, *args: Any, **kwargs: Any) -> Any:
        return kind(*args, **kwargs)

    def reduced(self: Any, protocol: Any) -> Any:
        _, args, *state = kind.__reduce_ex__(self, max(2, protocol))
        # Not `copyreg.__newobj__`, which pickle compares with the object's present class.
        return (kind.__new__, tuple(kind if arg is made else arg for arg in args), *state)

    made = type(
        kind.__name__,
        (kind,),
        {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "__call__": call,
            "__new__": new,
            "__reduce_ex__": reduced,
            "is_cross_controlnet": True,
        },
    )
    return made

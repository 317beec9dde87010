"""The handle that `cross_controlnet` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ...session import Session
from ...settings import Settings
from ...units import Unit
from .calls import calls_followed
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

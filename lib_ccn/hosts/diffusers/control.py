"""What following a diffusers pipeline means, whatever its family."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ...prompt import TokenizedPrompt
from ...session import Session
from ...settings import Settings, SettingsError
from ...units import StepClock, Unit
from ..in_front import put_in_front

log = logging.getLogger(__name__)


class CrossControlNet(ABC):
    """What `cross_controlnet` gives: the sessions of the generations made inside it.

    Attributes:
        session: of the latest generation; None before the first.
        settings: in use; assigning others takes effect with the next generation.
    """

    def __init__(
        self, pipe: Any, settings: Settings, prompt: str | Sequence[str] | None, weighted: bool
    ) -> None:
        self.pipe = pipe
        self.settings = settings
        self.session: Session | None = None
        self._prompt = prompt
        self._weighted = weighted
        self._clock = StepClock()
        self._undo = ExitStack()
        self._pending: tuple[list[str], int] | None = None
        self._aside = False

    def summary(self) -> str:
        """What was done in the latest generation, in one line."""
        return "no generation yet" if self.session is None else self.session.summary()

    # What is put in front of the pipeline's own methods

    @contextmanager
    def following(self) -> Iterator[None]:
        """The pipeline's own methods are followed inside; afterwards all is as it was."""
        with ExitStack() as undo:
            undo.enter_context(in_front(self.pipe, "encode_prompt", self.encode_prompt))
            nets = self.pipe.controlnet
            # Where accelerate offloads it, `forward` brings the weights and calls this one.
            name = "_old_forward" if "_old_forward" in vars(nets) else "forward"
            undo.enter_context(in_front(nets, name, self.controlnets))
            undo.callback(self.end)
            yield

    def encode_prompt(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A generation begins: remember its prompts, then encode them as ever."""
        given = inspect.signature(own).bind(*args, **kwargs).arguments
        texts = self._prompt if self._prompt is not None else self.prompt_of(given)
        prompts = [texts] if isinstance(texts, str) else list(texts or [])
        each = int(given.get("num_images_per_prompt") or 1)
        self.end()
        # Asked anew each time: people change the scheduler between generations.
        scheduler = self.pipe.scheduler
        self._clock = StepClock(order=getattr(scheduler, "order", 1))
        self._undo.enter_context(in_front(scheduler, "step", self.scheduler_step))
        self._pending = (prompts, each)
        self._aside = False
        return own(*args, **kwargs)

    def scheduler_step(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A sampler's step is done."""
        result = own(*args, **kwargs)
        self._clock.tick()
        if self.session is not None:
            self.session.end_call()
        return result

    def controlnets(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The ControlNets' turn: run each as the host would, return the fused residuals."""
        if self._aside:
            return own(*args, **kwargs)
        try:
            given = inspect.signature(own).bind(*args, **kwargs)
            given.apply_defaults()
            arguments = dict(given.arguments)
            arguments.update(arguments.pop("kwargs", {}))
            session, active = self._begin(arguments)
        except SettingsError:
            raise
        except Exception as error:
            if self.settings.strict:
                raise
            self._aside = True
            log.warning("Cross-ControlNet stands aside: %s", error, exc_info=error)
            return own(*args, **kwargs)
        if session.error is not None or len(active) < 2:
            return own(*args, **kwargs)
        outputs = {
            unit: session.run(unit, active[unit]) for unit in session.running_order(list(active))
        }
        return self.fused(session, outputs, arguments)

    def end(self) -> None:
        """Take the hooks of the running generation away."""
        self._undo.close()
        self._pending = None
        if self.session is not None:
            self.session.close()

    # What a family knows

    def prompt_of(self, given: Mapping[str, Any]) -> Any:
        """The text or texts that the foreground word is looked for in."""
        return given.get("prompt")

    @abstractmethod
    def _begin(self, arguments: dict[str, Any]) -> tuple[Session, dict[Unit, Callable[[], Any]]]:
        """Tell the session of a call; the units that take part, and how each is run."""

    @abstractmethod
    def fused(
        self, session: Session, outputs: dict[Unit, Any], arguments: Mapping[str, Any]
    ) -> Any:
        """What the host's own several ControlNets would return, of the units' outputs."""

    @abstractmethod
    def tokenize(self, prompt: str, tokens: int) -> TokenizedPrompt:
        """Where the prompt's tokens stand in a text context of that many tokens."""

    # How it is done

    def _take_pending(self, pictures: int, tokens: int) -> list[TokenizedPrompt] | None:
        """The prompts, one per picture or one for all, at a generation's first call."""
        if self._pending is None:
            if self.session is None:
                raise RuntimeError("the pipeline called its ControlNets before its encode_prompt")
            return None
        (prompts, each), self._pending = self._pending, None
        tokenized = [self.tokenize(prompt, tokens) for prompt in prompts for _ in range(each)]
        if len(tokenized) not in (0, 1, pictures):
            tokenized = tokenized[:1] * pictures if len(set(prompts)) == 1 else []
        return tokenized


@contextmanager
def in_front(owner: Any, name: str, ours: Callable[..., Any]) -> Iterator[None]:
    """`owner.name(...)` calls `ours(own, ...)` inside; afterwards all is as it was.

    Raises:
        RuntimeError: something of ours is there already.
    """
    if getattr(getattr(owner, name), "is_cross_controlnet", False):
        raise RuntimeError(f"{type(owner).__name__} is inside another cross_controlnet block")
    # It keeps the signature: pipelines ask a scheduler's `step` whether it takes a generator.
    undo = put_in_front(owner, name, ours)
    try:
        yield
    finally:
        undo()


def unit_name(number: int, net: Any) -> str:
    """How the log calls the unit of that number."""
    path = str(net.config.get("_name_or_path", "") or "")
    name = path.replace("\\", "/").rstrip("/").rpartition("/")[2] or type(net).__name__
    return f"{number}: {name}"

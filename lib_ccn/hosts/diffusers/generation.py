"""One call of a diffusers pipeline, whatever its family.

What is hooked may be shared: other pipelines have the same networks, in other threads too. So
everything of ours is there only while this call runs, acts in this thread alone, and is gone while
the caller's own function is called between two steps.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ...hooks import COMPILED, answered, in_this_thread, is_compiled
from ...prompt import Sought, TokenizedPrompt, find_word, why_missing
from ...session import Session
from ...settings import Settings, SettingsError
from ...units import StepClock, Unit
from ..guard import Guard

_CALLBACK = "callback_on_step_end"
_CALLBACKS = (_CALLBACK, "callback")


class Generation(Guard, ABC):
    """One call of a pipeline, from its beginning to its end.

    Args:
        pipe: the pipeline.
        settings: of this generation.
        prompt: the text behind `prompt_embeds`; None takes the call's own.
        weighted: `prompt` has weights in the WebUI's syntax.
        on_fused: called with the session and its units' outputs when a call's are fused.

    Attributes:
        session: None until the ControlNets are called.
    """

    def __init__(
        self,
        pipe: Any,
        settings: Settings,
        prompt: str | Sequence[str] | None = None,
        weighted: bool = False,
        on_fused: Callable[[Session, Mapping[Unit, Any]], None] | None = None,
    ) -> None:
        self.pipe = pipe
        self.settings = settings
        self.session: Session | None = None
        self._prompt = prompt
        self._weighted = weighted
        self._on_fused = on_fused
        self._undo = ExitStack()
        self._clock: StepClock | None = None
        self._timestep: Any = None
        self._given: dict[str, Any] | None = None

    def run(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's call.

        Raises:
            SettingsError: a setting is refused.
            RuntimeError: with the setting `strict`, something that was asked for did not happen.
        """
        for name in _CALLBACKS:
            if kwargs.get(name) is not None:
                kwargs.update(self._unheard(name, kwargs[name]))
        early = True
        try:
            self._hook()
            result = own(*args, **kwargs)
            early = bool(getattr(self.pipe, "interrupt", False))
        finally:
            self._undo.close()
            self._close(early)
        if self.settings.strict:
            self._check_done()
        return result

    def summary(self) -> str:
        """What was done, in one line."""
        account = self.account()
        if account is None:
            return "nothing was done: the pipeline did not come to its ControlNets"
        return account.line()

    # What is put in front of the pipeline's own methods

    def _hook(self) -> None:
        """Put everything of ours where it belongs, for this thread; `_undo` takes it away."""
        for owner, name, ours in self.places():
            self._undo.enter_context(answered(owner, name, ours))
        if not is_compiled(self.backbone):
            done = self.backbone.register_forward_hook(in_this_thread(self._backbone_done))
            self._undo.callback(done.remove)

    def places(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """Whose methods something of ours stands in front of: owner, name, ours."""
        yield self.pipe, "encode_prompt", self.encode_prompt
        nets = self.pipe.controlnet
        # Where accelerate offloads it, `forward` brings the weights and calls this one.
        yield nets, "_old_forward" if "_old_forward" in vars(nets) else "forward", self.controlnets

    def _backbone_done(self, *_: Any) -> None:
        if self.session is not None:
            self.session.end_call()

    def _unheard(self, name: str, callback: Callable[..., Any]) -> dict[str, Any]:
        """The caller's function as the pipeline gets it: nothing is hooked while it runs."""

        @functools.wraps(callback)
        def outside(*args: Any, **kwargs: Any) -> Any:
            self._undo.close()
            try:
                return callback(*args, **kwargs)
            finally:
                self._hook()

        given: dict[str, Any] = {name: outside}
        if hasattr(callback, "tensor_inputs"):  # a PipelineCallback, which the pipeline asks
            given[f"{name}_tensor_inputs"] = callback.tensor_inputs
        return given

    def encode_prompt(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The call's first prompt is the positive one; one after a step begins another pass."""
        if self._clock is not None:
            self._close(early=False)
            self._clock = self.session = self._given = None
        if self._given is None:
            self._given = inspect.signature(own).bind(*args, **kwargs).arguments
        return own(*args, **kwargs)

    def controlnets(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The ControlNets' turn: run each as the host would, return the fused residuals."""
        made = self.attempt(lambda: self._made(args, kwargs), lambda: None)
        if made is None:
            return own(*args, **kwargs)
        result, session, outputs = made
        if self._on_fused is not None:
            self._on_fused(session, outputs)
        return result

    def _made(self, args: Any, kwargs: Any) -> tuple[Any, Session, dict[Unit, Any]] | None:
        """The fused residuals, and those of each unit; None where there is nothing to fuse."""
        nets = several(self.pipe)
        # The class's, because a compiled one has no signature.
        given = inspect.signature(type(nets).forward).bind(nets, *args, **kwargs)
        given.apply_defaults()
        arguments = dict(given.arguments)
        del arguments["self"]
        arguments.update(arguments.pop("kwargs", {}))
        self._tick(arguments["timestep"])
        session, active = self.begin(arguments)
        if len(active) < 2:
            return None
        outputs = {
            unit: session.run(unit, active[unit]) for unit in session.running_order(list(active))
        }
        return self.fused(session, outputs, arguments), session, outputs

    def fail(self, error: Exception) -> None:
        """Stand aside because of an error; a setting that is refused is always raised."""
        if isinstance(error, SettingsError):
            raise error
        super().fail(error)

    # What a family knows

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The network that the ControlNets' residuals go to."""

    @abstractmethod
    def texts_of(self, given: Mapping[str, Any]) -> Sequence[Any]:
        """The arguments of `encode_prompt`, text or texts, that the foreground word may be in."""

    @abstractmethod
    def begin(self, arguments: dict[str, Any]) -> tuple[Session, dict[Unit, Callable[[], Any]]]:
        """Tell the session of a call; the units that take part, and how each is run."""

    @abstractmethod
    def fused(
        self, session: Session, outputs: dict[Unit, Any], arguments: Mapping[str, Any]
    ) -> Any:
        """What the host's own several ControlNets would return, of the units' outputs."""

    @abstractmethod
    def tokenize(self, prompt: str, tokens: int) -> TokenizedPrompt:
        """Where the prompt's tokens stand in a text context of that many tokens."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""

    # How it is done

    @property
    def nets(self) -> list[Any]:
        """The pipeline's ControlNets."""
        return list(several(self.pipe).nets)

    @property
    def step(self) -> int:
        """The sampler's step, from 0."""
        assert self._clock is not None
        return self._clock.step

    @property
    def steps(self) -> int | None:
        """How many steps the sampler makes; None where the pipeline does not say."""
        calls = getattr(self.pipe, "num_timesteps", None)
        return None if calls is None or self._clock is None else self._clock.steps_in(calls)

    def _tick(self, timestep: Any) -> None:
        """The ControlNets are called; a pipeline may do it more than once at one timestep."""
        if self._clock is None:
            self._clock = clock_of(self.pipe.scheduler)
        elif not (isinstance(timestep, Tensor) and timestep is self._timestep):
            self._clock.tick()
        self._timestep = timestep

    def prompts(self, pictures: int, tokens: int) -> list[TokenizedPrompt]:
        """The prompts, one per picture or one for all, in a context of that many tokens.

        Raises:
            SettingsError: with the setting `strict`, no prompt has the foreground word.
        """
        given = self._given or {}
        texts = self.texts_of(given) if self._prompt is None else [self._prompt]
        lists = [[text] if isinstance(text, str) else list(text) for text in texts if text]
        by_prompt = list(zip(*lists, strict=False))
        each = int(given.get("num_images_per_prompt") or 1)
        found = [self._tokenized(texts, tokens) for texts in by_prompt]
        self._check_word(found)
        prompts = [prompt for prompt in found for _ in range(each)]
        if len(prompts) not in (0, 1, pictures):
            prompts = prompts[:1] * pictures if len(set(by_prompt)) == 1 else []
        return prompts

    def _tokenized(self, texts: Sequence[str], tokens: int) -> TokenizedPrompt:
        """The one of a prompt's texts that has the most foreground words; the first of such."""
        prompts = [self.tokenize(text, tokens) for text in texts]
        return max(prompts, key=lambda prompt: -len(self._lacking(prompt)))

    def _lacking(self, prompt: TokenizedPrompt) -> list[Sought]:
        """The foreground words that a prompt has not."""
        wanted = [
            Sought.of(word, self.encode, prompt.literal) for word in self.settings.given_words
        ]
        return [word for word in wanted if not find_word(prompt, word.ids)]

    def _check_word(self, prompts: Sequence[TokenizedPrompt]) -> None:
        """With the setting `strict` a prompt has every word, and if none was named, it is known."""
        settings = self.settings
        if not (settings.strict and settings.reads_word):
            return
        said = "the prompt is not known: name it as `prompt` of cross_controlnet"
        if prompts:
            lacking = [self._lacking(prompt) for prompt in prompts]
            everywhere = [word for word in lacking[0] if all(word in other for other in lacking)]
            if not everywhere:
                return
            said = why_missing(prompts[0], everywhere[0])
        name = "layers" if settings.layers else "foreground_word"
        value = ", ".join(settings.given_words)
        raise SettingsError(name, value, f"words of the prompt; {said}")

    def _close(self, early: bool) -> None:
        if self.session is not None:
            self.session.ended_early |= early
            self.session.close()

    def _check_done(self) -> None:
        """Raise RuntimeError if something that was asked for did not happen."""
        if self.session is not None and self.session.shortfalls:
            raise RuntimeError(f"Cross-ControlNet: {'; '.join(self.session.notes)}")


def several(pipe: Any) -> Any:
    """What holds a pipeline's ControlNets, compiled or not."""
    nets = getattr(pipe, "controlnet", None)
    return getattr(nets, COMPILED.rstrip("."), nets)


def clock_of(scheduler: Any) -> StepClock:
    """A clock for the timesteps that a scheduler has set.

    PNDM begins with steps of the Runge-Kutta method, four timesteps each; without them its first
    step takes two.
    """
    runge_kutta = getattr(scheduler, "prk_timesteps", None)
    if runge_kutta is None:
        first: tuple[int, ...] = ()
    else:
        first = (4,) * (len(runge_kutta) // 4) or (2,)
    return StepClock(order=getattr(scheduler, "order", 1), first=first)


def unit_name(number: int, net: Any) -> str:
    """How the log calls the unit of that number."""
    net = getattr(net, COMPILED.rstrip("."), net)
    path = str(net.config.get("_name_or_path", "") or "")
    name = path.replace("\\", "/").rstrip("/").rpartition("/")[2] or type(net).__name__
    return f"{number}: {name}"

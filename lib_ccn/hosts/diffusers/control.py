"""Cross-ControlNet on diffusers' Stable Diffusion pipelines with several ControlNets.

    with cross_controlnet(pipe, Settings(foreground_word="star")) as control:
        picture = pipe("a red star over a field", image=[outline, regions]).images[0]
    print(control.summary())

`StableDiffusionControlNetPipeline` and its img2img and inpaint siblings call three of their parts
in a way that we can follow: `encode_prompt` once at the start, the `MultiControlNetModel` once
per UNet call, the scheduler's `step` after it. Each of these gets an instance attribute in front
of its own method while the `with` block lasts, and nothing else changes.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import MultiControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetOutput
from torch import Tensor

from ..images import decode_mask
from ..prompt import TokenizedPrompt, layout, tokenize
from ..session import Session
from ..settings import Settings, SettingsError
from ..units import Call, StepClock, Unit

log = logging.getLogger(__name__)


class CrossControlNet:
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

    def encode_prompt(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A generation begins: remember its prompts, then encode them as ever."""
        given = inspect.signature(own).bind(*args, **kwargs).arguments
        texts = self._prompt if self._prompt is not None else given.get("prompt")
        prompts = [texts] if isinstance(texts, str) else list(texts or [])
        each = int(given.get("num_images_per_prompt") or 1)
        self.end()
        # Asked anew each time: people change the scheduler between generations.
        scheduler = self.pipe.scheduler
        self._clock = StepClock(order=getattr(scheduler, "order", 1))
        self._undo.enter_context(_in_front(scheduler, "step", self.scheduler_step))
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
        """The ControlNets' turn: run each as the host would, give the UNet the fused residuals."""
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
        images, scales = arguments.pop("controlnet_cond"), arguments.pop("conditioning_scale")
        wants_dict = arguments.pop("return_dict", True)
        outputs: dict[Unit, list[Tensor]] = {}
        for unit in session.running_order(active):
            number = session.units.index(unit)

            def forward(unit: Unit = unit, number: int = number) -> list[Tensor]:
                down, middle = unit.module(
                    **arguments,
                    controlnet_cond=images[number],
                    conditioning_scale=scales[number],
                    return_dict=False,
                )
                return [*down, middle]

            outputs[unit] = session.run(unit, forward)
        *down, middle = session.fuse(outputs)
        if not wants_dict:
            return down, middle
        return ControlNetOutput(tuple(down), middle)  # type: ignore[arg-type]

    def end(self) -> None:
        """Take the hooks of the running generation away."""
        self._undo.close()
        self._pending = None
        if self.session is not None:
            self.session.close()

    # How it is done

    def _begin(self, arguments: Mapping[str, Any]) -> tuple[Session, list[Unit]]:
        sample, text = arguments["sample"], arguments["encoder_hidden_states"]
        rows = len(sample)
        doubled = bool(self.pipe.do_classifier_free_guidance)
        guess = bool(arguments.get("guess_mode"))
        pictures = rows // 2 if doubled and not guess else rows
        if self._pending is not None:
            self._start(*self._pending, pictures, text.shape[1])
            self._pending = None
        session = self.session
        if session is None:
            raise RuntimeError("the pipeline called its ControlNets before its encode_prompt")
        scales = arguments["conditioning_scale"]
        active = []
        for unit, image, scale in zip(
            session.units, arguments["controlnet_cond"], scales, strict=True
        ):
            unit.condition = image
            if scale != 0:
                active.append(unit)
        first = pictures if doubled else 0
        session.begin_call(
            Call(
                latent_size=(sample.shape[-2], sample.shape[-1]),
                step=self._clock.step,
                pictures=[row % pictures for row in range(rows)],
                conditional=range(first, first + pictures),
            ),
            active,
        )
        return session, active

    def _start(self, prompts: list[str], each: int, pictures: int, tokens: int) -> None:
        units = [
            Unit(net, f"{number}: {_name(net)}")
            for number, net in enumerate(self.pipe.controlnet.nets)
        ]
        tokenized = [self._tokenize(prompt, tokens) for prompt in prompts for _ in range(each)]
        if len(tokenized) not in (0, 1, pictures):
            tokenized = tokenized[:1] * pictures if len(set(prompts)) == 1 else []
        self.session = Session(
            self.settings,
            self.pipe.unet,
            units,
            prompts=tokenized,
            encode=self._encode,
            mask_image=decode_mask(self.settings),
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.pipe.tokenizer(text, add_special_tokens=False).input_ids)

    def _tokenize(self, prompt: str, tokens: int) -> TokenizedPrompt:
        """Where the prompt's tokens stand in a text context of that many tokens."""
        tokenizer = self.pipe.tokenizer
        piece = tokenizer.convert_ids_to_tokens
        length = tokenizer.model_max_length
        if self._weighted or tokens > length:
            # Embeddings made by a prompt-weighting library: chunks of 75, as the WebUIs make them.
            return tokenize(
                prompt,
                self._encode,
                weighted=self._weighted,
                max_chunks=max(1, tokens // length),
                chunk=length - 2,
                decode_piece=piece,
            )
        if hasattr(self.pipe, "maybe_convert_prompt"):  # textual inversions become their tokens
            prompt = self.pipe.maybe_convert_prompt(prompt, tokenizer)
        ids = tokenizer(prompt, truncation=True, max_length=length).input_ids
        return layout(
            [ids],
            chunk=length - 2,
            bos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            decode_piece=piece,
        )


@contextmanager
def cross_controlnet(
    pipe: Any,
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    prompt: str | Sequence[str] | None = None,
    weighted: bool = False,
) -> Iterator[CrossControlNet]:
    """Fuse the ControlNets of `pipe` in every generation made inside the `with` block.

    Args:
        pipe: a `StableDiffusionControlNetPipeline`, or its img2img or inpaint sibling, whose
            `controlnet` is a `MultiControlNetModel`.
        settings: `Settings`, or a mapping for `Settings.from_dict`; its `enabled` is not asked,
            as the block itself says that the method is wanted.
        prompt: the text behind `prompt_embeds`, where the pipeline is called with those; the
            foreground word is looked for in it.
        weighted: `prompt` has weights such as "(red star:1.2)", in the WebUI's syntax.

    Yields:
        A handle with `session`, `settings` and `summary()`.

    Raises:
        SettingsError: a setting is refused, here or when a generation begins.
        TypeError: the pipeline has no `MultiControlNetModel`.
        RuntimeError: the pipeline is inside another such block.
    """
    chosen = settings if isinstance(settings, Settings) else Settings.from_dict(settings or {})
    chosen.check_usable()
    decode_mask(chosen)
    nets: Any = getattr(pipe, "controlnet", None)
    is_multiple = isinstance(nets, MultiControlNetModel)
    if not is_multiple:
        raise TypeError(
            f"pipe.controlnet is {type(nets).__name__}; expected a MultiControlNetModel, "
            "which a pipeline has when it is given a list of ControlNets"
        )
    number = chosen.foreground_unit
    if number != "auto" and int(number) >= len(nets.nets):
        raise SettingsError("foreground_unit", number, f"'auto' or 0 to {len(nets.nets) - 1}")
    control = CrossControlNet(pipe, chosen, prompt, weighted)
    with ExitStack() as undo:
        undo.enter_context(_in_front(pipe, "encode_prompt", control.encode_prompt))
        undo.enter_context(_in_front(nets, "forward", control.controlnets))
        undo.callback(control.end)
        yield control


@contextmanager
def _in_front(owner: Any, name: str, ours: Callable[..., Any]) -> Iterator[None]:
    """`owner.name(...)` calls `ours(own, ...)` inside; afterwards all is as it was.

    What somebody else put in front of ours in the meantime stays, and ours steps aside.
    """
    previous = owner.__dict__.get(name)
    own = getattr(owner, name)
    if getattr(own, "is_cross_controlnet", False):
        raise RuntimeError(f"{type(owner).__name__} is inside another cross_controlnet block")
    inside = True

    # Pipelines ask a scheduler's `step` for its signature before they pass "eta" or "generator".
    @functools.wraps(own)
    def instead(*args: Any, **kwargs: Any) -> Any:
        return ours(own, *args, **kwargs) if inside else own(*args, **kwargs)

    instead.is_cross_controlnet = True  # type: ignore[attr-defined]
    owner.__dict__[name] = instead
    try:
        yield
    finally:
        inside = False
        instead.is_cross_controlnet = False  # type: ignore[attr-defined]
        if owner.__dict__.get(name) is instead:
            del owner.__dict__[name]
            if previous is not None:
                owner.__dict__[name] = previous


def _name(net: Any) -> str:
    path = str(net.config.get("_name_or_path", "") or "")
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2] or type(net).__name__

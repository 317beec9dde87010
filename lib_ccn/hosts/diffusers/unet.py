"""Stable Diffusion 1.5 and XL pipelines, XL's union ControlNets among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusers import MultiControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from torch import Tensor

from ...images import decode_masks
from ...prompt import Token, TokenizedPrompt, tokenize, with_names
from ...session import Session
from ...spelling import END_OF_WORD
from ...units import Call, Unit
from .generation import Generation, several, unit_name

SEVERAL = (MultiControlNetModel, MultiControlNetUnionModel)
# What the host gives each unit its own of.
_BY_UNIT = ("controlnet_cond", "conditioning_scale", "control_type", "control_type_idx")


def check_belonging(pipe: Any) -> None:
    """Raise ValueError if a ControlNet of the pipeline was made for another family of UNets."""
    ours = pipe.unet.config
    for number, net in enumerate(several(pipe).nets):
        for name in ("cross_attention_dim", "addition_embed_type", "block_out_channels"):
            theirs, wanted = net.config.get(name), ours.get(name)
            if name == "block_out_channels":
                theirs, wanted = tuple(theirs or ()), tuple(wanted or ())
            if theirs != wanted:
                raise ValueError(
                    f"ControlNet {unit_name(number, net)} does not belong to this pipeline's "
                    f"UNet: its {name} is {theirs}, the UNet's is {wanted}; ControlNets of "
                    "Stable Diffusion 1.5, 2 and XL cannot be mixed"
                )


class UNetGeneration(Generation):
    """One call of a pipeline with a UNet and a `MultiControlNetModel` or its union sibling."""

    @property
    def backbone(self) -> Any:
        """The UNet."""
        return self.pipe.unet

    def texts_of(self, given: Mapping[str, Any]) -> Sequence[Any]:
        """The first text encoder's prompt, and the second's.

        SDXL's encoders have one vocabulary, and their outputs stand side by side in a token's
        channels, so that a position means the same token in both.
        """
        return given.get("prompt"), given.get("prompt_2")

    def begin(self, arguments: dict[str, Any]) -> tuple[Session, dict[Unit, Callable[[], Any]]]:
        """Tell the session of a call; the units that take part, and how each is run."""
        sample, text = arguments["sample"], arguments["encoder_hidden_states"]
        rows = len(sample)
        doubled = bool(self.pipe.do_classifier_free_guidance)
        perturbed = bool(getattr(self.pipe, "do_perturbed_attention_guidance", False))
        if doubled and arguments.get("guess_mode"):
            pictures = rows
        else:  # unconditional, conditional and, with PAG, perturbed rows, which are conditional too
            pictures = rows // (1 + doubled + perturbed)
        if self.session is None:
            self.session = self._begun_session(pictures, text.shape[1])
        session = self.session
        active = self._active(session, arguments)
        first = pictures if doubled else 0
        session.begin_call(
            Call(
                latent_size=(sample.shape[-2], sample.shape[-1]),
                step=self.step,
                pictures=[row % pictures for row in range(rows)],
                conditional=range(first, first + pictures),
            ),
            list(active),
        )
        return session, active

    def _begun_session(self, pictures: int, tokens: int) -> Session:
        return Session(
            self.settings,
            self.pipe.unet,
            [
                Unit(net, unit_name(number, net), not net.config.get("global_pool_conditions"))
                for number, net in enumerate(self.nets)
            ],
            prompts=self.prompts(pictures, tokens),
            encode=self.encode,
            mask_image=decode_masks(self.settings),
            steps=self.steps,
        )

    def _active(
        self, session: Session, arguments: Mapping[str, Any]
    ) -> dict[Unit, Callable[[], Any]]:
        """How each unit that takes part in this call is run."""
        shared = {name: value for name, value in arguments.items() if name not in _BY_UNIT}
        shared["return_dict"] = False
        own_names = [name for name in _BY_UNIT if name in arguments]
        if isinstance(several(self.pipe), MultiControlNetUnionModel):
            shared["from_multi"] = True
        active: dict[Unit, Callable[[], Any]] = {}
        own_values = zip(*(arguments[name] for name in own_names), strict=True)
        for unit, values in zip(session.units, own_values, strict=True):
            own = dict(zip(own_names, values, strict=True))
            condition = own["controlnet_cond"]
            unit.condition = condition if isinstance(condition, Tensor) else condition[0]

            def forward(unit: Unit = unit, own: dict[str, Any] = own) -> list[Tensor]:
                down, middle = unit.module(**shared, **own)
                return [*down, middle]

            if own["conditioning_scale"] != 0:
                active[unit] = forward
        return active

    def fused(
        self, session: Session, outputs: dict[Unit, list[Tensor]], arguments: Mapping[str, Any]
    ) -> Any:
        """The UNet's residuals, as a `MultiControlNetModel` returns them."""
        *down, middle = session.fuse(outputs)
        if not arguments.get("return_dict", True):
            return down, middle
        return ControlNetOutput(tuple(down), middle)  # type: ignore[arg-type]

    @property
    def _tokenizer(self) -> Any:
        return self.pipe.tokenizer or self.pipe.tokenizer_2  # SDXL's refiner has the second alone

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        # The pipeline itself warns of what does not fit.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def tokenize(self, prompt: str, tokens: int) -> TokenizedPrompt:
        """Where the prompt's tokens stand in a text context of that many tokens.

        A context of several chunks was made by a prompt-weighting library: chunks of 75, as the
        WebUIs make them.
        """
        tokenizer = self._tokenizer
        length = tokenizer.model_max_length
        chunks = max(1, tokens // length)
        if not self._weighted and chunks == 1 and hasattr(self.pipe, "maybe_convert_prompt"):
            # Textual inversions become their tokens.
            prompt = self.pipe.maybe_convert_prompt(prompt, tokenizer)
        added = set(tokenizer.get_added_vocab().values())

        def piece(number: int) -> str:
            known = str(tokenizer.convert_ids_to_tokens(number))
            return known + END_OF_WORD if number in added else known

        placed = tokenize(
            prompt,
            self.encode,
            weighted=self._weighted,
            max_chunks=chunks,
            chunk=length - 2,
            decode_piece=piece,
        )
        named = with_names(placed, _inversions(placed.tokens, added))
        return replace(named, literal=not self._weighted)


def _inversions(tokens: Sequence[Token], added: set[int]) -> Iterator[tuple[range, list[int]]]:
    """Where textual inversions stand, and the token that is their name.

    One of several vectors is `<name>`, `<name>_1` and so on: all of them are the word `<name>`.
    """
    start = 0
    while start < len(tokens):
        first, end = tokens[start], start + 1
        if first.id in added:
            name = str(first.piece).removesuffix(END_OF_WORD)
            while end < len(tokens) and tokens[end].piece == f"{name}_{end - start}{END_OF_WORD}":
                end += 1
            yield range(first.position, tokens[end - 1].position + 1), [first.id]
        start = end

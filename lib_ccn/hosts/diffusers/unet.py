"""Stable Diffusion 1.5 and XL pipelines, XL's union ControlNets among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import MultiControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from torch import Tensor

from ...images import decode_mask
from ...prompt import TokenizedPrompt, clean_word, layout, tokenize
from ...session import Session
from ...units import Call, Unit
from .control import CrossControlNet, unit_name

SEVERAL = (MultiControlNetModel, MultiControlNetUnionModel)
# What the host gives each unit its own of.
_BY_UNIT = ("controlnet_cond", "conditioning_scale", "control_type", "control_type_idx")


def check_belonging(pipe: Any) -> None:
    """Raise ValueError if a ControlNet of the pipeline was made for another family of UNets."""
    ours = pipe.unet.config
    for number, net in enumerate(pipe.controlnet.nets):
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


class UNetControl(CrossControlNet):
    """Follows a pipeline with a UNet and a `MultiControlNetModel` or its union sibling."""

    def prompt_of(self, given: Mapping[str, Any]) -> Any:
        """The first text encoder's prompt; the second's where the named word is only there.

        SDXL's encoders have one vocabulary, and their outputs stand side by side in a token's
        channels, so that a position means the same token in both.
        """
        first, second = (
            [texts] if isinstance(texts, str) else list(texts or [])
            for texts in (given.get("prompt"), given.get("prompt_2"))
        )
        word = clean_word(self.settings.foreground_word).lower()
        if not word or len(first) != len(second):
            return first
        return [
            b if word in b.lower() and word not in a.lower() else a
            for a, b in zip(first, second, strict=True)
        ]

    def _begin(self, arguments: dict[str, Any]) -> tuple[Session, dict[Unit, Callable[[], Any]]]:
        sample, text = arguments["sample"], arguments["encoder_hidden_states"]
        rows = len(sample)
        doubled = bool(self.pipe.do_classifier_free_guidance)
        perturbed = bool(getattr(self.pipe, "do_perturbed_attention_guidance", False))
        if doubled and arguments.get("guess_mode"):
            pictures = rows
        else:  # unconditional, conditional and, with PAG, perturbed rows, which are conditional too
            pictures = rows // (1 + doubled + perturbed)
        prompts = self._take_pending(pictures, text.shape[1])
        if prompts is not None:
            self._start(prompts)
        session = self.session
        assert session is not None
        active = self._active(session, arguments)
        first = pictures if doubled else 0
        session.begin_call(
            Call(
                latent_size=(sample.shape[-2], sample.shape[-1]),
                step=self._clock.step,
                pictures=[row % pictures for row in range(rows)],
                conditional=range(first, first + pictures),
            ),
            list(active),
        )
        return session, active

    def _start(self, prompts: list[TokenizedPrompt]) -> None:
        self.session = Session(
            self.settings,
            self.pipe.unet,
            [
                Unit(net, unit_name(number, net), not net.config.get("global_pool_conditions"))
                for number, net in enumerate(self.pipe.controlnet.nets)
            ],
            prompts=prompts,
            encode=self._encode,
            mask_image=decode_mask(self.settings),
        )

    def _active(
        self, session: Session, arguments: Mapping[str, Any]
    ) -> dict[Unit, Callable[[], Any]]:
        """How each unit that takes part in this call is run."""
        shared = {name: value for name, value in arguments.items() if name not in _BY_UNIT}
        shared["return_dict"] = False
        own_names = [name for name in _BY_UNIT if name in arguments]
        if isinstance(self.pipe.controlnet, MultiControlNetUnionModel):
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

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def tokenize(self, prompt: str, tokens: int) -> TokenizedPrompt:
        """Where the prompt's tokens stand in a text context of that many tokens."""
        tokenizer = self._tokenizer
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

"""FLUX pipelines with a `FluxMultiControlNetModel`.

A FLUX ControlNet gives the transformer one residual per attention block, each a sequence
[B, tokens, C] over the packed 2x2 latents. They are fused as maps [B, C, h, w]: PixFusion, and
ChannelFusion on the last of them, which is the last single-stream residual, or the last
double-stream one where no unit has single-stream blocks **[choice]**.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import FluxMultiControlNetModel
from diffusers.models import attention_dispatch
from torch import Tensor

from ...attention import SelfAttention
from ...images import decode_masks
from ...joint_attention import JointAttention
from ...prompt import Token, TokenizedPrompt, strip_weights
from ...session import Session
from ...spelling import clip_piece
from ...units import Call, Unit
from .generation import Generation, several, unit_name

SEVERAL = (FluxMultiControlNetModel,)
_BY_UNIT = ("controlnet_cond", "controlnet_mode", "conditioning_scale")
_TORCH_ATTENTION = (
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
)


def check_belonging(pipe: Any) -> None:
    """Raise ValueError if a ControlNet of the pipeline does not fit its transformer."""
    ours = pipe.transformer.config
    for number, net in enumerate(several(pipe).nets):
        for name in (
            "in_channels",
            "num_attention_heads",
            "attention_head_dim",
            "joint_attention_dim",
            "pooled_projection_dim",
        ):
            if net.config.get(name) != ours.get(name):
                raise ValueError(
                    f"ControlNet {unit_name(number, net)} does not belong to this pipeline's "
                    f"transformer: its {name} is {net.config.get(name)}, the transformer's is "
                    f"{ours.get(name)}"
                )


class FluxGeneration(Generation):
    """One call of a pipeline with a FLUX transformer.

    With true guidance the pipeline encodes a negative prompt after the positive one, and calls the
    transformer twice in each step: the first time counts.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._images: list[Tensor] = []
        self._ids: Tensor | None = None
        self._grid = (0, 0)

    @property
    def backbone(self) -> Any:
        """The transformer."""
        return self.pipe.transformer

    # What is put in front of the pipeline's own methods

    def places(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """Whose methods something of ours stands in front of: owner, name, ours."""
        yield from super().places()
        yield self.pipe, "prepare_image", self.prepare_image

    def prepare_image(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A condition image, which the pipeline goes on to encode to latents."""
        image = own(*args, **kwargs)
        self._images.append(image)
        return image

    # What a family knows

    def texts_of(self, given: Mapping[str, Any]) -> Sequence[Any]:
        """The T5 encoder's prompt: the other encoder's tokens do not reach attention."""
        return [given.get("prompt_2") or given.get("prompt")]

    def begin(self, arguments: dict[str, Any]) -> tuple[Session, dict[Unit, Callable[[], Any]]]:
        """Tell the session of a call; the units that take part, and how each is run."""
        rows = len(arguments["hidden_states"])
        # As the host pairs them: the shortest list decides, and a single ControlNet takes all.
        values = list(zip(*(arguments[name] for name in _BY_UNIT), strict=False))
        nets = self.nets
        nets = nets * len(values) if len(nets) == 1 else nets[: len(values)]
        values = values[: len(nets)]
        if self.session is None:
            tokens = arguments["encoder_hidden_states"].shape[1]
            self.session = self._begun_session(self.prompts(rows, tokens), nets)
        session = self.session
        active = self._active(session, arguments, values)
        session.begin_call(
            Call(
                latent_size=self._token_grid(arguments),
                step=self.step,
                pictures=range(rows),
                conditional=range(rows),
            ),
            list(active),
        )
        return session, active

    def _begun_session(self, prompts: list[TokenizedPrompt], nets: Sequence[Any]) -> Session:
        units = [Unit(net, unit_name(number, net)) for number, net in enumerate(nets)]
        if len(self._images) == len(units):
            for unit, image in zip(units, self._images, strict=True):
                # The pipeline's own processor gives [-1, 1]; a tensor comes as its owner made it.
                unit.condition = (image + 1) / 2 if image.amin() < 0 else image
        self._images = []
        # Residuals go in and out as maps; the latent size of a call is the image tokens' grid.
        return Session(
            self.settings,
            self.pipe.transformer,
            units,
            prompts=prompts,
            encode=self.encode,
            mask_image=decode_masks(self.settings),
            steps=self.steps,
            attention=JOINT,
        )

    def _active(
        self, session: Session, arguments: Mapping[str, Any], values: Sequence[tuple[Any, ...]]
    ) -> dict[Unit, Callable[[], Any]]:
        """How each unit that takes part in this call is run."""
        shared = {name: value for name, value in arguments.items() if name not in _BY_UNIT}
        shared["return_dict"] = False
        active: dict[Unit, Callable[[], Any]] = {}
        for unit, (image, mode, scale) in zip(session.units, values, strict=True):

            def forward(
                unit: Unit = unit, image: Any = image, mode: Any = mode, scale: Any = scale
            ) -> Any:
                return unit.module(
                    **shared,
                    controlnet_cond=image,
                    controlnet_mode=mode[:, None],
                    conditioning_scale=scale,
                )

            if scale != 0:
                active[unit] = forward
        return active

    def fused(
        self, session: Session, outputs: dict[Unit, Any], arguments: Mapping[str, Any]
    ) -> Any:
        """The transformer's two lists of residuals, as a `FluxMultiControlNetModel` has them."""
        doubles, singles = (
            _common_depth([len(getattr(unit.module, name)) for unit in session.units])
            for name in ("controlnet_blocks", "controlnet_single_blocks")
        )
        like = next(samples for output in outputs.values() for samples in output if samples)[0]
        maps = {
            unit: [
                tokens.mT.unflatten(-1, self._grid)
                for samples, depth in zip(output, (doubles, singles), strict=True)
                for tokens in _padded(samples, depth, like)
            ]
            for unit, output in outputs.items()
        }
        tokens = [fused.flatten(2).mT for fused in session.fuse(maps)]
        return tokens[:doubles] or None, tokens[doubles:] or None

    def _token_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Rows and columns of the image tokens, as their positions say."""
        ids = arguments["img_ids"]
        if ids is not self._ids:
            last = ids.reshape(-1, ids.shape[-1]).amax(0).tolist()
            grid = int(last[1]) + 1, int(last[2]) + 1
            tokens = arguments["hidden_states"].shape[1]
            if grid[0] * grid[1] != tokens:
                raise ValueError(f"positions of {grid[0]}x{grid[1]} for {tokens} image tokens")
            self._ids, self._grid = ids, grid
        return self._grid

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        return list(self.pipe.tokenizer_2(text, add_special_tokens=False, verbose=False).input_ids)

    def tokenize(self, prompt: str, tokens: int) -> TokenizedPrompt:
        """Where the prompt's tokens stand in a T5 context of that many tokens, the end included."""
        prompt = strip_weights(prompt) if self._weighted else prompt
        ids = self.encode(prompt)
        content = tokens - 1
        placed = tuple(
            Token(token, place, piece)
            for place, (token, piece) in enumerate(zip(ids, self._spell(ids), strict=True))
        )
        return TokenizedPrompt(
            placed[:content],
            1,
            content,
            tuple(ids[content:]),
            self._spell,
            literal=not self._weighted,
        )

    def _spell(self, ids: Sequence[int]) -> list[str]:
        """The ids' pieces, as CLIP would write them."""
        pieces = list(self.pipe.tokenizer_2.convert_ids_to_tokens(list(ids)))
        return [clip_piece(piece, pieces[n + 1 : n + 2]) for n, piece in enumerate(pieces)]


def _common_depth(depths: Sequence[int]) -> int:
    """How many residuals the host adds up: the fewest of any unit that has some.

    None at all where the first unit has none, whatever the others have.
    """
    return min((depth for depth in depths if depth), default=0) if depths[0] else 0


def _padded(samples: Sequence[Tensor] | None, depth: int, like: Tensor) -> list[Tensor]:
    """A unit's first residuals; zeros for a unit that has none."""
    return list(samples[:depth]) if samples else [torch.zeros_like(like)] * depth


@contextmanager
def _torch_attention(layers: Sequence[SelfAttention]) -> Iterator[None]:
    """These layers use torch's own attention function, which can be listened to.

    Where a user chose another one, by a private attribute of the processors or for all of
    diffusers, it is set aside.
    """
    name = "_attention_backend"
    with ExitStack() as undo:
        for layer in layers:
            processor = getattr(layer.module, "processor", None)
            if not hasattr(processor, name):
                continue
            chosen = getattr(processor, name) or _chosen_for_all()
            if getattr(chosen, "value", chosen) in _TORCH_ATTENTION:
                continue
            if name in vars(processor):
                undo.callback(setattr, processor, name, getattr(processor, name))
            else:
                undo.callback(delattr, processor, name)
            setattr(processor, name, "native")
        yield


def _chosen_for_all() -> Any:
    registry = getattr(attention_dispatch, "_AttentionBackendRegistry", None)
    return "native" if registry is None else registry.get_active_backend()[0]


JOINT = JointAttention(_torch_attention)

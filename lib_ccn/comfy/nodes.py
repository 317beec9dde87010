"""The nodes: what they ask for, and what ComfyUI is told of them."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import ComfyExtension, io, ui

from ..hosts.linked_list import in_order
from ..settings import SettingsError, fields, page_message
from .control import fuse
from .drawn import Drawn
from .plan import ANY_UNIT, AUTOMATIC, MASK_SOURCES, InFront, Report, booleans, plan_of
from .words import PromptWord

log = logging.getLogger(__name__)

CATEGORY = "conditioning/controlnet"
Word = io.Custom("CROSS_CONTROLNET_WORD")
Told = io.Custom("CROSS_CONTROLNET_REPORT")
Layers = io.Custom("CROSS_CONTROLNET_LAYERS")

_NONE = object()  # what a socket has that nothing is connected to


def _help(name: str) -> str:
    return fields()[name].help


def _unit_input(name: str) -> Any:
    return io.Int.Input(
        name,
        default=ANY_UNIT,
        min=ANY_UNIT,
        max=int(fields()[name].maximum),
        tooltip=_help(name).replace("'auto'", "-1").replace("unit", "ControlNet"),
        advanced=True,
        optional=True,
    )


class ApplyCrossControlNet(io.ComfyNode):
    """Behind the last Apply ControlNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        choices = fields()
        return io.Schema(
            node_id="CrossControlNetApply",
            display_name="Apply Cross-ControlNet",
            category=CATEGORY,
            description="Fuses the ControlNets of both conditionings, so that conditions that "
            "disagree do not spoil each other. Connect it behind the last Apply ControlNet.",
            search_aliases=["cross controlnet", "fuse controlnets", "multi controlnet", "ccn"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="With two or more ControlNets applied."),
                io.Conditioning.Input("negative", tooltip="With the same ControlNets applied."),
                io.Combo.Input(
                    "fusion",
                    options=list(choices["fusion"].choices),
                    default=choices["fusion"].default,
                    tooltip=_help("fusion"),
                ),
                io.Float.Input(
                    "delta",
                    default=float(choices["delta"].default),
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=_help("delta") + " The paper takes 0.5 for FLUX.",
                ),
                io.Boolean.Input("injection", default=True, tooltip=_help("inject")),
                io.Combo.Input(
                    "mask_source",
                    options=list(MASK_SOURCES),
                    default=AUTOMATIC,
                    tooltip="Where the foreground is. 'automatic' takes the mask if one is "
                    "connected, else the word if one is connected, else the silhouette in the "
                    "foreground ControlNet's image; for FLUX, as in the paper, the whole picture.",
                ),
                Word.Input("word", optional=True, tooltip="From a Foreground word node."),
                io.Mask.Input("mask", optional=True, tooltip=_help("mask_image")),
                io.Float.Input(
                    "mask_threshold",
                    default=float(choices["mask_threshold"].default),
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=_help("mask_threshold"),
                    optional=True,
                ),
                Layers.Input(
                    "layers",
                    optional=True,
                    tooltip="From Cross-ControlNet layer nodes: several ControlNets in front. They "
                    "say who is in front then, and the word node's prompt is where words are read.",
                ),
                _unit_input("foreground_unit"),
                _unit_input("background_unit"),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Before this share of the sampling the ControlNets are added up.",
                    advanced=True,
                    optional=True,
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="After this share of the sampling the ControlNets are added up.",
                    advanced=True,
                    optional=True,
                ),
                io.Float.Input(
                    "injection_start",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the steps after which KV-Injection begins; the paper's is "
                    "0.1, 5 of 50 steps.",
                    advanced=True,
                    optional=True,
                ),
                io.Int.Input(
                    "start_layer",
                    default=int(choices["start_layer"].default),
                    min=0,
                    max=int(choices["start_layer"].maximum),
                    tooltip=_help("start_layer"),
                    advanced=True,
                    optional=True,
                ),
                io.Int.Input(
                    "mask_reduction",
                    default=int(choices["mask_reduction"].default),
                    min=int(choices["mask_reduction"].minimum),
                    max=int(choices["mask_reduction"].maximum),
                    tooltip=_help("mask_reduction"),
                    advanced=True,
                    optional=True,
                ),
                io.Float.Input(
                    "foreground_gain",
                    default=float(choices["foreground_gain"].default),
                    min=float(choices["foreground_gain"].minimum),
                    max=float(choices["foreground_gain"].maximum),
                    step=0.05,
                    tooltip=_help("foreground_gain"),
                    advanced=True,
                    optional=True,
                ),
                io.Boolean.Input(
                    "record",
                    default=True,
                    tooltip="Keep what Cross-ControlNet report shows: mask, and who won where.",
                    advanced=True,
                    optional=True,
                ),
                # Last: workflows keep widgets by their order.
                io.Combo.Input(
                    "outside_places",
                    options=list(choices["outside_places"].choices),
                    default=choices["outside_places"].default,
                    tooltip=_help("outside_places"),
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                Told.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, mask_source: Any = AUTOMATIC, word: Any = _NONE, mask: Any = _NONE
    ) -> bool | str:
        """Refuse a mask source that there is not, or whose socket is empty."""
        if mask_source is None:  # it comes from another node
            return True
        if mask_source not in MASK_SOURCES:
            return f"mask_source is {mask_source!r}: expected one of {', '.join(MASK_SOURCES)}"
        if {"word": word, "mask": mask}.get(mask_source) is _NONE:
            return f"{mask_source}: nothing is connected, but mask_source is '{mask_source}'"
        return True

    @classmethod
    def execute(cls, positive: Any, negative: Any, **given: Any) -> io.NodeOutput:
        """Put the fusion in front of the conditionings' ControlNets."""
        try:
            plan = plan_of(is_flux=any(map(_has_flux, [*positive, *negative])), **given)
        except SettingsError as error:  # it costs the fusion, not the picture
            report = Report([f"the ControlNets are summed: {page_message(error)}"])
        else:
            positive, negative, report = fuse(positive, negative, plan)
        for note in report.notes:
            log.warning("Cross-ControlNet: %s", note)
        return io.NodeOutput(positive, negative, report)


class CrossControlNetLayer(io.ComfyNode):
    """One ControlNet in front of others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        threshold = fields()["mask_threshold"]
        return io.Schema(
            node_id="CrossControlNetLayer",
            display_name="Cross-ControlNet layer",
            category=CATEGORY,
            description="A ControlNet in front of others, with its place: where its word or its "
            "mask is, else where Apply Cross-ControlNet says. Chain several, from front to back.",
            search_aliases=["cross controlnet layer", "ccn layer", "several foregrounds"],
            inputs=[
                io.Int.Input(
                    "unit",
                    default=0,
                    min=0,
                    max=int(fields()["foreground_unit"].maximum),
                    tooltip="Which ControlNet, counted from 0, the first that was applied.",
                ),
                io.String.Input(
                    "word",
                    default="",
                    tooltip="What it shows, by a word of the prompt of the Foreground word node.",
                ),
                Layers.Input("in_front", optional=True, tooltip="Layers in front of this one."),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White where it is, in place of a word."
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=float(threshold.default),
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=threshold.help,
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[Layers.Output(display_name="layers")],
        )

    @classmethod
    def execute(
        cls,
        unit: int,
        word: str,
        in_front: tuple[InFront, ...] = (),
        mask: Any = None,
        mask_threshold: float | None = None,
    ) -> io.NodeOutput:
        """Put it behind the others."""
        own = None if mask is None else booleans(mask)
        return io.NodeOutput((*(in_front or ()), InFront(unit, word, own, mask_threshold)))


class ForegroundWord(io.ComfyNode):
    """Encodes a prompt as CLIP Text Encode does, and finds a word in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="CrossControlNetWord",
            display_name="Foreground word",
            category=CATEGORY,
            description="CLIP Text Encode, with the word that names the foreground object.",
            search_aliases=["cross controlnet word", "ccn word", "foreground"],
            inputs=[
                io.Clip.Input("clip", tooltip="As for CLIP Text Encode."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="The prompt."
                ),
                io.String.Input("word", default="", tooltip=fields()["foreground_word"].help),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="What CLIP Text Encode makes of the prompt.",
                ),
                Word.Output(display_name="word", tooltip="For Apply Cross-ControlNet."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, word: str) -> io.NodeOutput:
        """Encode the prompt."""
        if clip is None:
            raise ValueError("clip: there is none; the checkpoint may have no text encoder")
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        found = PromptWord.of(clip, text, word, conditioning[0][0])
        missing = found.missing()
        if missing:
            log.warning("Cross-ControlNet: %s", missing)
        return io.NodeOutput(conditioning, found)


class CrossControlNetReport(io.ComfyNode):
    """Shows what was done, once the pictures are there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="CrossControlNetReport",
            display_name="Cross-ControlNet report",
            category=CATEGORY,
            description="What Cross-ControlNet did in the latest sampling with its conditioning.",
            search_aliases=["cross controlnet report", "ccn report", "show what was done"],
            inputs=[
                Told.Input("report", tooltip="From Apply Cross-ControlNet."),
                io.Image.Input("images", tooltip="What was sampled, from VAE Decode."),
            ],
            outputs=[
                io.Image.Output(display_name="strip", tooltip="Picture, mask, and who won where."),
                io.Mask.Output(display_name="mask", tooltip="The foreground, of each layer."),
                io.Image.Output(display_name="winners", tooltip="Who won where, in colours."),
                io.String.Output(display_name="summary"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, report: Report, images: Any) -> io.NodeOutput:
        """Draw it."""
        drawn = Drawn.of(report, images)
        preview = ui.PreviewImage(drawn.strips, cls=cls).as_dict()
        shown = {"images": preview["images"], "text": (drawn.summary,)}
        return io.NodeOutput(drawn.strips, drawn.masks, drawn.winners, drawn.summary, ui=shown)


class CrossControlNetExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Its nodes."""
        return [ApplyCrossControlNet, CrossControlNetLayer, ForegroundWord, CrossControlNetReport]


async def comfy_entrypoint() -> CrossControlNetExtension:
    """What ComfyUI asks a pack for."""
    return CrossControlNetExtension()


def _has_flux(conditioning: Any) -> bool:
    controls = in_order(conditioning[1].get("control"))
    models = [getattr(control, "control_model", None) for control in controls]
    return any(hasattr(model, "double_blocks") for model in models)

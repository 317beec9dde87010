"""The page's layout, on gradio 6."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..webui.accordion import Accordion
from ..webui.arguments import PAGE
from ..webui.preset_row import QUICK
from ..webui.presets import PresetStore
from ..webui.unit_choices import unit_choices
from .examples import Example
from .page_events import Events
from .page_inputs import CANVAS, GUIDANCE_LIMIT, SEED_LIMIT, STEP_LIMIT, editor_value
from .page_run import FUSED, SUM, Studio
from .page_views import bar, example_thumbnail
from .scenes import MAP_COLOURS

ROOT = Path(__file__).parents[2]
TITLE = "Cross-ControlNet playground"
# What the WebUI calls its text-to-image tab: the accordion's script looks for it.
TAB = "txt2img"
UNITS = 3
STEPS = 20

_INTRO = """\
# Cross-ControlNet playground
Two ControlNets, one picture. Click an example (an object's outline over a map that knows no
object), or draw and upload conditions of your own; then compare the plain sum with
Cross-ControlNet, made from the same noise.
"""
_WHITE, _BLACK = "#ffffff", "#000000"


@dataclass(frozen=True)
class Start:
    """What the page shows at first.

    Attributes:
        examples: to click; none for a model they are not made for.
        guidance_scale: of the sampler.
        preset: whose values the accordion shows.
    """

    examples: list[Example]
    guidance_scale: float
    preset: str


@dataclass
class UnitControls:
    """The controls of one condition."""

    is_on: Any
    net: Any
    editor: Any

    @property
    def all(self) -> list[Any]:
        """In the order of `page_inputs.read_order`."""
        return [self.is_on, self.net, self.editor]


def head() -> str:
    """The accordion's scripts and styles, as a WebUI loads them, and the page's own styles."""
    scripts = sorted((ROOT / "javascript").glob("*.js"))
    styles = (ROOT / "style.css", Path(__file__).with_name("page.css"))
    return "\n".join(
        [f"<style>\n{path.read_text('utf-8')}</style>" for path in styles]
        + [f"<script>\n{path.read_text('utf-8')}</script>" for path in scripts]
    )


def theme() -> Any:
    """Gradio's, in the system's own fonts: others would come over the network."""
    return gr.themes.Default(
        primary_hue="orange",
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )


def build(studio: Studio, store: PresetStore, start: Start) -> gr.Blocks:
    """Make the page.

    Args:
        studio: makes the pictures.
        store: of the accordion's presets.
        start: what is shown at first.
    """
    events = Events(studio, start.examples)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True
    ) as page:
        gr.Markdown(_INTRO)
        outcome = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=420):
                gallery = _examples(start.examples)
                prompt = gr.Textbox(
                    label="Prompt", lines=2, elem_id=f"{TAB}_prompt", placeholder="What to draw"
                )
                negative = gr.Textbox(
                    label="Negative prompt", lines=1, max_lines=2, elem_id=f"{TAB}_neg_prompt"
                )
                units = _units(studio)
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEED_LIMIT)
                    steps = gr.Slider(
                        1, STEP_LIMIT, STEPS, step=1, label="Steps", elem_id="ccn_steps"
                    )
                    guidance = gr.Slider(
                        1, GUIDANCE_LIMIT, start.guidance_scale, step=0.5, label="Guidance"
                    )
                accordion = Accordion(TAB, store, start.preset, UNITS)
                accordion.follow_units([unit.net for unit in units])
            with gr.Column(scale=6, min_width=480, elem_classes="ccn-results"):
                shown = _results()
        basics = [prompt, negative, seed, steps, guidance]
        inputs = [*basics, *(c for unit in units for c in unit.all), *accordion.controls]
        views = [shown[name] for name in events.VIEWS]
        # Said by the browser itself, since another window's generation may keep the queue busy.
        waiting = json.dumps(bar(0, "Waiting for its turn"))
        shown["generate"].click(None, [], [shown["status"]], js=f"() => {waiting}")
        # Every click counts and waits for its turn, whichever window it comes from.
        shown["generate"].click(
            events.generate,
            inputs,
            [outcome, *views],
            trigger_mode="multiple",
            concurrency_limit=1,
            concurrency_id="generation",
            show_progress="hidden",
        )
        shown["cancel"].click(events.cancel, [], [], **_QUICK)
        page.unload(events.cancel)
        looks = [shown["step"], shown["layer"]]
        looked = [shown[name] for name in events.LOOKED]
        for control in looks:
            control.input(
                events.look, [outcome, *looks], looked, trigger_mode="always_last", **_QUICK
            )
        shown["layers"].select(
            events.choose_layer, [outcome, shown["step"]], [shown["layer"], *looked], **_QUICK
        )
        word = accordion.controls[PAGE.index("foreground_word")]
        editors = [unit.editor for unit in units[:2]]
        switches = [unit.is_on for unit in units]
        filled = [prompt, seed, word, *editors, *switches]
        gallery.select(events.choose_example, [], filled, **_QUICK)
        named = [
            accordion.controls[PAGE.index(f"{role}_unit")] for role in ("foreground", "background")
        ]
        choices = unit_choices([*studio.names, *studio.names[-1:] * UNITS][:UNITS])
        page.load(lambda: [gr.update(choices=choices)] * 2, [], named, **_QUICK)
        if start.examples:
            page.load(lambda: events.example_values(0), [], filled, **_QUICK)
    return page


_QUICK = {"queue": QUICK["queue"], "show_progress": "hidden"}


def _examples(examples: list[Example]) -> Any:
    return gr.Gallery(
        [example_thumbnail(example) for example in examples],
        label="Examples",
        show_label=False,
        columns=max(1, len(examples)),
        height="auto",
        allow_preview=False,
        visible=bool(examples),
        elem_id="ccn_examples",
        elem_classes="ccn-small",
        format="png",
        buttons=[],
    )


def _units(studio: Studio) -> list[UnitControls]:
    """The conditions, in the boxes that the badge counts as it does a WebUI's units."""
    units = []
    count = len(studio.names)
    with gr.Column(elem_id=f"{TAB}_controlnet"):
        with gr.Row():
            units += [_unit(studio, number, is_on=True) for number in range(2)]
        with gr.Accordion("A third condition", open=count > 2):
            units.append(_unit(studio, 2, is_on=count > 2))
    return units


def _unit(studio: Studio, number: int, is_on: bool) -> UnitControls:
    names = list(studio.names)
    with gr.Column(min_width=260):
        with gr.Row():
            box = gr.Checkbox(
                is_on,
                label="On",
                elem_classes="cnet-unit-enabled",
                container=False,
            )
            net = gr.Dropdown(
                names,
                value=names[min(number, len(names) - 1)],
                label="ControlNet",
                show_label=False,
                container=False,
            )
        paint = [*map(_hex, MAP_COLOURS.tolist())] if number == 1 else []
        editor = gr.ImageEditor(
            # Black says nothing, and white lines can be seen on it.
            editor_value(Image.new("RGB", (CANVAS, CANVAS))),
            label=f"Condition {number}",
            type="pil",
            image_mode="RGBA",
            sources=("upload", "clipboard"),
            transforms=(),
            brush=gr.Brush(
                default_size=64 if paint else 10,
                colors=[*paint, _WHITE, _BLACK],
                default_color=paint[0] if paint else _WHITE,
            ),
            layers=False,
            canvas_size=(CANVAS, CANVAS),
            fixed_canvas=True,
            height=330,
            format="png",
            buttons=[],
            elem_id=f"ccn_condition_{number}",
        )
    return UnitControls(box, net, editor)


def _results() -> dict[str, Any]:
    shown: dict[str, Any] = {}
    with gr.Row():
        shown["generate"] = gr.Button("Generate", variant="primary", elem_id=f"{TAB}_generate")
        shown["cancel"] = gr.Button("Cancel", scale=0, min_width=120, elem_id="ccn_cancel")
    shown["status"] = gr.HTML("", elem_id="ccn_status")
    with gr.Row():
        shown["plain"] = _picture(SUM, "ccn_plain")
        shown["fused"] = _picture(FUSED, "ccn_fused")
    with gr.Column(visible=False) as inside:
        with gr.Row():
            shown["step"] = gr.Slider(0, 1, 0, step=1, label="Step", elem_id="ccn_step")
            shown["layer"] = gr.Slider(0, 1, 0, step=1, label="Residual", elem_id="ccn_layer")
        with gr.Row():
            with gr.Column(min_width=220):
                shown["mask"] = _picture("Foreground mask at this step", "ccn_mask")
                shown["mask_note"] = gr.HTML("")
            with gr.Column(min_width=220):
                shown["winner"] = _picture("Who wins where in this residual", "ccn_winner")
                shown["winner_note"] = gr.HTML("", elem_id="ccn_winner_note")
        gr.Markdown("Every residual at this step; click one to see it above.")
        shown["layers"] = gr.Gallery(
            label="Every residual",
            show_label=False,
            columns=7,
            height="auto",
            allow_preview=False,
            elem_id="ccn_layers",
            elem_classes="ccn-small",
            format="png",
            buttons=[],
        )
    shown["inside"] = inside
    return shown


def _picture(label: str, elem_id: str) -> Any:
    return gr.Image(
        label=label,
        type="pil",
        format="png",
        interactive=False,
        elem_id=elem_id,
        elem_classes="ccn-picture",
        buttons=["download", "fullscreen"],
    )


def _hex(colour: list[float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)

"""The page's layout, on gradio 6."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_ccn.webui.accordion import Accordion
from lib_ccn.webui.arguments import PAGE, unit_choices
from lib_ccn.webui.preset_row import QUICK
from lib_ccn.webui.presets import PresetStore

from .examples import Example
from .page_events import Events
from .page_first import NOTE, STEPS
from .page_inputs import CANVAS, GUIDANCE_LIMIT, STEP_LIMIT, editor_value, received
from .page_run import FUSED, SUM, Studio
from .page_views import bar, example_thumbnail, said, shown_picture, wrong
from .scenes import MAP_COLOURS

ROOT = Path(__file__).parents[1]
TITLE = "Cross-ControlNet playground"
# What the WebUI calls its text-to-image tab: the accordion's script looks for it.
TAB = "txt2img"
UNITS = 3

_INTRO = """\
# Cross-ControlNet playground
Two ControlNets that disagree: one shows an object, the other a landscape without it. Click an
example or draw your own, and compare the plain sum of both with Cross-ControlNet.
"""
_LOST = (
    "No answer came that this page understands. Is the program in the terminal still running? "
    "If so, load the page again."
)
_WHITE, _BLACK = "#ffffff", "#000000"


@dataclass(frozen=True)
class Start:
    """What the page shows at first.

    Attributes:
        examples: to click; none for a model they are not made for.
        guidance_scale: of the sampler.
        preset: whose values the accordion shows.
        finished: the first example's plain sum and fused picture, made beforehand; None for a
            model that did not make them.
    """

    examples: list[Example]
    guidance_scale: float
    preset: str
    finished: tuple[Image.Image, Image.Image] | None = None


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
    """The accordion's scripts and styles, as a WebUI loads them, and the page's own."""
    own = Path(__file__)
    scripts = [*sorted((ROOT / "javascript").glob("*.js")), own.with_name("page.js")]
    styles = (ROOT / "style.css", own.with_name("page.css"))
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
    events = Events(studio, start.examples, start.finished)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True
    ) as page:
        gr.Markdown(_INTRO)
        outcome = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=340):
                gallery = _examples(start.examples)
            with gr.Column(scale=6, min_width=340):
                prompt = gr.Textbox(
                    label="Prompt", lines=2, elem_id=f"{TAB}_prompt", placeholder="What to draw"
                )
        shown = _run_bar(NOTE if start.finished else "")
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=480):
                shown.update(_results(start))
            with gr.Column(scale=5, min_width=420):
                units = _units(studio)
                sampler = _sampler(start)
                accordion = Accordion(TAB, store, start.preset, UNITS)
                accordion.follow_units([unit.net for unit in units])
        controls = [*(c for unit in units for c in unit.all), *accordion.controls]
        _connect_generation(page, events, shown, outcome, [prompt, *sampler, *controls])
        _connect_looks(events, shown, outcome)
        word = accordion.controls[PAGE.index("foreground_word")]
        editors = [unit.editor for unit in units[:2]]
        switches = [unit.is_on for unit in units]
        seed = sampler[1]
        filled = [prompt, seed, word, *editors, *switches, shown["status"]]
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


def _connect_generation(
    page: gr.Blocks, events: Events, shown: dict[str, Any], outcome: Any, inputs: list[Any]
) -> None:
    """Let Generate and Cancel do what they say; whatever happens ends in the status."""
    status = [shown["status"]]

    def generate(request: gr.Request, kept: Any, *values: Any) -> Iterator[list[Any]]:
        yield from events.generate(request, kept, lambda: received(inputs, values))

    # Said by the browser itself, since another window's generation may keep the queue busy.
    shown["generate"].click(None, [], status, js=_says(bar(0, "Waiting for its turn")))
    # Every click counts and waits for its turn, whichever window it comes from. Values come as the
    # browser sends them: gradio would refuse some of them before anybody could say why.
    clicked = shown["generate"].click(
        generate,
        [outcome, *inputs],
        [outcome, *(shown[name] for name in events.VIEWS)],
        preprocess=False,
        trigger_mode="multiple",
        concurrency_limit=1,
        concurrency_id="generation",
        show_progress="hidden",
    )
    # In the browser too, since the program may have been stopped.
    clicked.failure(None, [], status, js=_says(wrong(_LOST)))
    shown["refused"].click(None, [], status, js="() => window.ccnRefusal()")
    shown["cancel"].click(events.cancel, [], [], **_QUICK)
    page.unload(events.cancel)


def _connect_looks(events: Events, shown: dict[str, Any], outcome: Any) -> None:
    """Let the sliders and the small maps choose what is looked at."""
    looks = [shown["step"], shown["layer"]]
    looked = [shown[name] for name in events.LOOKED] + [shown["status"]]
    for control in looks:
        control.input(
            events.look,
            [outcome, *looks],
            looked,
            preprocess=False,
            trigger_mode="always_last",
            **_QUICK,
        )
    shown["layers"].select(
        events.choose_layer,
        [outcome, shown["step"]],
        [shown["layer"], *looked],
        preprocess=False,
        **_QUICK,
    )


def _says(text: str) -> str:
    """A script that gives the status its HTML."""
    return f"() => {json.dumps(text)}"


def _run_bar(note: str) -> dict[str, Any]:
    """Generate, Cancel and the status, which stay in sight."""
    shown: dict[str, Any] = {}
    with gr.Column(elem_id="ccn_run"):
        with gr.Row():
            shown["generate"] = gr.Button("Generate", variant="primary", elem_id=f"{TAB}_generate")
            shown["cancel"] = gr.Button("Cancel", scale=0, min_width=120, elem_id="ccn_cancel")
        shown["status"] = gr.HTML(said(html.escape(note)), elem_id="ccn_status")
        # Pressed by the page's script when it refuses a file; see `page.js`.
        shown["refused"] = gr.Button("", visible="hidden", elem_id="ccn_refused_file")
    return shown


def _sampler(start: Start) -> list[Any]:
    """Negative prompt, seed, steps, guidance scale."""
    negative = gr.Textbox(
        label="Negative prompt", lines=1, max_lines=2, elem_id=f"{TAB}_neg_prompt"
    )
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, elem_id="ccn_seed", min_width=100)
        steps = gr.Slider(
            1, STEP_LIMIT, STEPS, step=1, label="Steps", elem_id="ccn_steps", min_width=140
        )
        guidance = gr.Slider(
            1, GUIDANCE_LIMIT, start.guidance_scale, step=0.5, label="Guidance", min_width=140
        )
    return [negative, seed, steps, guidance]


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
    # The accordion's scripts read a unit by the names that ControlNet gives its controls.
    unit = f"{TAB}_controlnet_ControlNet-{number}_controlnet"
    with gr.Column(min_width=260):
        with gr.Row():
            box = gr.Checkbox(
                is_on,
                label="On",
                elem_id=f"{unit}_enable_checkbox",
                elem_classes="cnet-unit-enabled",
                container=False,
            )
            net = gr.Dropdown(
                names,
                value=names[min(number, len(names) - 1)],
                label="ControlNet",
                show_label=False,
                container=False,
                elem_id=f"{unit}_model_dropdown",
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
            elem_classes="ccn-editor",
        )
    return UnitControls(box, net, editor)


def _results(start: Start) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    plain, fused = start.finished or (None, None)
    with gr.Row():
        shown["plain"] = _picture(SUM, "ccn_plain", plain)
        shown["fused"] = _picture(FUSED, "ccn_fused", fused)
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


def _picture(label: str, elem_id: str, picture: Image.Image | None = None) -> Any:
    return gr.Image(
        shown_picture(picture),
        label=label,
        type="pil",
        format="png",
        interactive=False,
        elem_id=elem_id,
        elem_classes="ccn-picture",
        min_width=150,
        buttons=["download", "fullscreen"],
    )


def _hex(colour: list[float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)

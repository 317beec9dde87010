"""The page's controls: what they are, and what is read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from lib_ccn.images import ImageError, eight_bit, to_condition
from lib_ccn.webui import arguments

from .figures import enlarged, to_image
from .page_run import FUSED, STEPS, SUM, Order, OrderError, UnitOrder
from .scenes import MAP_COLOURS

# What the WebUI calls its text-to-image tab: the accordion's script looks for it.
TAB = "txt2img"
SEED_LIMIT = 2**32 - 1
STEP_LIMIT = 100
GUIDANCE_LIMIT = 30.0
# An editor's canvas, a whole multiple of the demo model's 64 pixels, so that nothing is blurred.
CANVAS = 512
_WHITE, _BLACK = "#ffffff", "#000000"


def run_bar(status: str) -> dict[str, Any]:
    """Generate, Cancel and the status, which stay in sight."""
    shown: dict[str, Any] = {}
    with gr.Column(elem_id="ccn_run"):
        with gr.Row():
            shown["generate"] = gr.Button("Generate", variant="primary", elem_id=f"{TAB}_generate")
            shown["cancel"] = gr.Button("Cancel", scale=0, min_width=120, elem_id="ccn_cancel")
        shown["status"] = gr.HTML(status, elem_id="ccn_status")
        # Pressed by the page's script when it refuses a file; see `page.js`.
        shown["refused"] = gr.Button("", visible="hidden", elem_id="ccn_refused_file")
    return shown


def sampler(guidance_scale: float) -> list[Any]:
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
            1, GUIDANCE_LIMIT, guidance_scale, step=0.5, label="Guidance", min_width=140
        )
    return [negative, seed, steps, guidance]


def examples(thumbnails: list[Image.Image]) -> Any:
    """The examples to click; not there without any."""
    return gr.Gallery(
        thumbnails,
        label="Examples",
        show_label=False,
        columns=max(1, (len(thumbnails) + 1) // 2 if len(thumbnails) > 6 else len(thumbnails)),
        height="auto",
        allow_preview=False,
        visible=bool(thumbnails),
        elem_id="ccn_examples",
        elem_classes="ccn-small",
        format="png",
        buttons=[],
    )


def units(names: Sequence[str], on: int) -> tuple[list[list[Any]], Any]:
    """The conditions, in the boxes that the badge counts as a WebUI's units; the last one's fold.

    So many of them are `on`, two at least.

    Gradio leaves out of the page what is folded and never was open: who turns the last one on has
    to open it too, so that the badge can count it.
    """
    made = []
    with gr.Column(elem_id=f"{TAB}_controlnet"):
        with gr.Row():
            made += [_unit(names, number, is_on=True) for number in range(2)]
        with gr.Accordion("A third condition", open=on > 2) as fold:
            made.append(_unit(names, 2, is_on=on > 2))
    return made, fold


def _unit(names: Sequence[str], number: int, is_on: bool) -> list[Any]:
    """Whether it is on, its ControlNet, its condition."""
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
                list(names),
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
    return [box, net, editor]


def results(plain: Image.Image | None, fused: Image.Image | None) -> dict[str, Any]:
    """Both pictures, and what is inside, by name."""
    shown: dict[str, Any] = {}
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
        picture,
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


def read_order(
    basics: Sequence[Any],
    units: Sequence[Sequence[Any]],
    method: Sequence[Any],
    names: Sequence[str],
    side: int,
) -> Order:
    """Build the order of one click.

    Args:
        basics: prompt, negative prompt, seed, steps, guidance scale.
        units: for each, whether it is on, its ControlNet's name, and its editor's value.
        method: the accordion's controls.
        names: of the ControlNets.
        side: of the pictures, in pixels.

    Raises:
        OrderError: a control holds what cannot be used; the message names it.
    """
    prompt, negative, seed, steps, guidance = basics
    request = arguments.read(method)
    if request.problem is not None:
        raise OrderError(request.problem)
    orders = []
    for number, (is_on, name, value) in enumerate(units):
        if not is_on:
            continue
        try:
            condition = read_condition(value, side)
        except ImageError as error:
            raise OrderError(f"Condition {number} cannot be used: {error}") from error
        if condition is None:
            raise OrderError(f"Condition {number} is empty: draw or upload it, or switch it off.")
        if name not in names:
            raise OrderError(f"Condition {number}: there is no ControlNet {name!r}.")
        orders.append(UnitOrder(number, names.index(name), condition))
    return Order(
        prompt=str(prompt or ""),
        negative_prompt=str(negative or ""),
        seed=whole("Seed", seed, 0, SEED_LIMIT),
        steps=whole("Steps", steps, 1, STEP_LIMIT),
        guidance_scale=_number("Guidance", guidance, 1, GUIDANCE_LIMIT),
        units=tuple(orders),
        settings=request.settings if request.settings.enabled else None,
    )


def read_condition(value: Any, side: int) -> Tensor | None:
    """The picture of an editor as [3, side, side] in [0, 1]; None where nothing is there.

    Raises ImageError.
    """
    picture = value.get("composite") if isinstance(value, Mapping) else value
    if picture is None:
        return None
    picture = eight_bit(picture, (side, side))
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema()[1] == 0:
        return None
    # A box is exact for whole factors, which the editors' own pictures are reduced by.
    whole = min(picture.size) % side == 0
    resample = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
    return to_condition(picture, (side, side), resample)


def shown_condition(condition: Tensor) -> Image.Image:
    """A condition [3, H, W] as an editor shows it."""
    return enlarged(to_image(condition), CANVAS)


def editor_value(picture: Image.Image | None) -> dict[str, Any] | None:
    """A picture as an editor's value."""
    if picture is None:
        return None
    return {"background": picture, "layers": [], "composite": picture}


def received(components: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Decode what a browser sent for gradio's components: pictures only.

    All other values stay as they are, for `read_order` to refuse in words.

    Raises:
        OrderError: a picture is no picture.
    """
    return [_decoded(*pair) for pair in zip(components, values, strict=True)]


def _decoded(component: Any, value: Any) -> Any:
    model = getattr(component, "data_model", None)
    if model is None or value is None:
        return value
    try:
        return component.preprocess(model(**value))
    except Exception as error:  # whatever Pillow and gradio raise
        raise OrderError(f"{component.label} cannot be used: it is no picture.") from error


def whole(label: str, value: Any, low: int, high: int) -> int:
    """A control's value as a whole number from `low` to `high`; raises OrderError."""
    number = _number(label, value, low, high)
    if number != int(number):
        raise OrderError(f"{label}: {value} is no whole number.")
    return int(number)


def _number(label: str, value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise OrderError(f"{label}: {value!r} is no number.") from None
    if not low <= number <= high:
        raise OrderError(f"{label}: {value} is not {low:.10g} to {high:.10g}.")
    return number

"""What differs between gradio 3.41 (AUTOMATIC1111, reForge, Forge Classic), 4.40 (Forge), and the
gradio of the playground, which has no WebUI around it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.context import Context

_MAJOR = int(gr.__version__.partition(".")[0])
_GRADIO_3 = _MAJOR == 3
_HEIGHT = 400
_WHITE, _RED = "#ffffff", "#d63054"


def input_accordion(label: str, elem_id: str) -> tuple[Any, Any]:
    """Make an accordion with a checkbox of its own.

    Returns the checkbox, and the context that what stands inside is made in. In a WebUI both are
    its own `InputAccordion`, closed and off; elsewhere it is open and on.
    """
    try:
        from modules.ui_components import InputAccordion
    except ModuleNotFoundError:
        accordion = gr.Accordion(label, open=True, elem_id=elem_id)
        with accordion:
            return gr.Checkbox(True, label="On", elem_id=f"{elem_id}-checkbox"), accordion
    made = InputAccordion(False, label=label, elem_id=elem_id)
    return made, made


def folded(label: str, elem_id: str) -> Any:
    """Make an accordion that is closed at first, and whose controls are on the page all the same.

    Later gradios make what is inside of one when it is opened for the first time, and the page's
    scripts read it before.
    """
    late = _MAJOR > 4
    accordion = gr.Accordion(label, open=late, elem_id=elem_id)
    if late:
        close = functools.partial(gr.update, open=False)
        Context.root_block.load(close, [], [accordion], queue=False, show_progress="hidden")
    return accordion


def file_url(path: Path) -> str:
    """Where the page finds a file of this machine that it is allowed to show."""
    route = "file=" if _MAJOR < 5 else "gradio_api/file="
    return route + quote(path.as_posix(), safe="/:")


def mask_editor(label: str, elem_id: str) -> list[Any]:
    """Make something to upload a picture with and to paint on it.

    Returns its one component, or two: the picture, and the strokes on it. `arguments.read` takes
    the second one after the page's own arguments.
    """
    if _GRADIO_3:
        sketch = gr.Image(
            label=label,
            elem_id=elem_id,
            source="upload",
            tool="sketch",
            type="pil",
            image_mode="RGBA",
            brush_radius=40,
            brush_color=_WHITE,
            mirror_webcam=False,
            height=_HEIGHT,
        )
        return [sketch]
    if _MAJOR > 4:
        editor = gr.ImageEditor(
            label=label,
            elem_id=elem_id,
            type="pil",
            image_mode="RGBA",
            sources=("upload", "clipboard"),
            # Strokes count in any colour, and an empty canvas is white.
            brush=gr.Brush(default_size=40, colors=[_RED], color_mode="fixed"),
            layers=False,
            height=_HEIGHT,
        )
        return [editor]
    try:
        from modules_forge.forge_canvas.canvas import ForgeCanvas
    except ImportError:
        return [gr.Image(label=label, elem_id=elem_id, type="pil", image_mode="RGBA")]
    # gradio 4's own editor draws without pause, which hangs a page without a graphics card.
    canvas = ForgeCanvas(
        elem_id=elem_id,
        height=_HEIGHT,
        scribble_color=_WHITE,
        scribble_color_fixed=True,
        scribble_alpha_fixed=True,
        scribble_softness_fixed=True,
        scribble_width=4,
    )
    canvas.background.label = label
    canvas.foreground.label = f"{label} strokes"
    return [canvas.background, canvas.foreground]

"""What differs between gradio 3.41 (AUTOMATIC1111, reForge, Forge Classic) and 4.40 (Forge)."""

from __future__ import annotations

from typing import Any

import gradio as gr

_GRADIO_3 = gr.__version__.startswith("3.")
_HEIGHT = 400


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
            brush_color="#ffffff",
            mirror_webcam=False,
            height=_HEIGHT,
        )
        return [sketch]
    try:
        from modules_forge.forge_canvas.canvas import ForgeCanvas
    except ImportError:
        return [gr.Image(label=label, elem_id=elem_id, type="pil", image_mode="RGBA")]
    # gradio 4's own editor draws without pause, which hangs a page without a graphics card.
    gr.Markdown(label)
    canvas = ForgeCanvas(
        elem_id=elem_id,
        height=_HEIGHT,
        scribble_color="#ffffff",
        scribble_color_fixed=True,
        scribble_alpha_fixed=True,
        scribble_softness_fixed=True,
        scribble_width=10,
    )
    canvas.background.label = label
    canvas.foreground.label = f"{label} strokes"
    return [canvas.background, canvas.foreground]

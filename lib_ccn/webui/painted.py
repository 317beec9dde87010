"""A mask image as the page hands it over, turned into the base64 PNG that the settings carry."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..images import eight_bit, on_black
from ..schema import SettingsError

_SKETCH = frozenset({"image", "mask"})
_EDITOR = frozenset({"background", "layers", "composite"})


def is_picture(value: Any) -> bool:
    """Whether `value` is something that `to_base64` reads, by its type alone."""
    if isinstance(value, Mapping):
        return value.keys() >= _SKETCH or value.keys() >= _EDITOR
    return isinstance(value, (Image.Image, np.ndarray))


def with_strokes(picture: Any, strokes: Any) -> dict[str, Any]:
    """Return a picture and the transparent layer painted over it as an editor's dict."""
    return {"background": picture, "layers": [strokes], "composite": None}


def to_base64(value: Any) -> str | None:
    """Return a picture as base64 PNG, or None where nothing was uploaded or painted.

    It is made 8-bit and small by `images.eight_bit`, whatever its size.

    Args:
        value: a PIL image of any mode; an array [H, W], [H, W, 3] or [H, W, 4], uint8 or bool; or
            the dict of an editor: gradio 3's sketch tool (`image`, `mask`) or gradio 4's
            `ImageEditor` (`background`, `layers`, `composite`). In an editor, strokes are the
            mask, whatever their colour, where there are any; otherwise the uploaded picture is.

    Raises:
        SettingsError: naming `mask_image`, for anything else.
    """
    try:
        picture = _from_editor(value) if isinstance(value, Mapping) else _picture(value)
        return None if picture is None else _png(picture)
    except (TypeError, ValueError) as error:
        allowed = f"a picture, or an array of 8 bits per channel ({error})"
        raise SettingsError("mask_image", value, allowed) from error


def _from_editor(value: Mapping[str, Any]) -> Image.Image | None:
    if value.keys() >= _SKETCH:
        strokes = [_painted(value["mask"], "L")]
        background = _picture(value["image"])
    else:
        strokes = [_painted(layer, "A") for layer in value["layers"] or ()]
        background = _picture(value["background"])
    painted = [stroke for stroke in strokes if stroke is not None and stroke.any()]
    if painted:
        return Image.fromarray(np.logical_or.reduce(painted).astype(np.uint8) * 255)
    if background is None or _is_blank(background):
        return None
    return background


def _painted(value: Any, channel: str) -> np.ndarray | None:
    """Where a layer is painted, as booleans [H, W]: where it covers, or where it is white.

    The sketch tool gives white strokes on black, an editor strokes of any colour on nothing.
    """
    layer = _picture(value)
    if layer is None:
        return None
    covers = layer.convert("RGBA").getchannel("A")
    return np.asarray(covers if channel == "A" else on_black(layer).convert("L")) > 127


def _is_blank(picture: Image.Image) -> bool:
    """Whether a picture is transparent throughout, as the canvas of an untouched editor is."""
    return picture.mode == "RGBA" and picture.getchannel("A").getextrema()[1] == 0


def _picture(value: Any) -> Image.Image | None:
    """The value as an 8-bit picture of bounded size."""
    if value is None:
        return None
    return eight_bit(value if isinstance(value, Image.Image) else _of_array(value))


def _of_array(value: Any) -> Image.Image:
    if not isinstance(value, np.ndarray) or value.dtype not in (np.uint8, np.bool_):
        raise TypeError(f"not {type(value).__name__} {getattr(value, 'dtype', '')}".rstrip())
    if value.ndim not in (2, 3):
        raise TypeError(f"not an array of {value.ndim} dimensions")
    if value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]
    return Image.fromarray(value.astype(np.uint8) * 255 if value.dtype == np.bool_ else value)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")

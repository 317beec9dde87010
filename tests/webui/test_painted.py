"""A mask as the page hands it over: bounded, and read as every other picture."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from lib_ccn.images import SIDE
from lib_ccn.schema import SettingsError
from lib_ccn.webui.painted import to_base64

LARGE = (3000, 1500)


def decoded(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def half(mode: str, size: tuple[int, int] = LARGE) -> Image.Image:
    """White on the right; in RGBA, nothing on the left."""
    picture = Image.new(mode, size)
    white = (255,) * len(mode) if mode in ("LA", "RGB", "RGBA") else 255
    picture.paste(white, (size[0] // 2, 0, *size))
    return picture


@pytest.mark.parametrize(
    "value",
    [
        half("L"),
        half("RGBA"),
        np.asarray(half("RGB")),
        np.asarray(half("L")) > 0,
        {"image": None, "mask": half("RGB")},
        {"background": half("RGBA"), "layers": [half("RGBA"), half("RGBA")], "composite": None},
        {"background": half("RGB"), "layers": [], "composite": None},
        {"background": np.asarray(half("RGBA")), "layers": [np.asarray(half("RGBA"))]}
        | {"composite": None},
    ],
)
def test_whatever_its_size_it_is_sent_small(value: Any) -> None:
    made = decoded(to_base64(value))
    assert made.size == (1000, 500)
    assert max(made.size) <= SIDE
    shown = np.asarray(made.convert("RGBA"))
    assert (shown[:, 505:] == 255).all()
    assert not (shown[:, :495] == 255).all(-1).any()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_greys_keep_their_range(mode: str) -> None:
    kind, white = {"I;16": ("<u2", 65535), "I": ("<i4", 65535), "F": ("<f4", 4)}[mode]
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    picture = Image.frombytes(mode, (8, 8), (ramp * white).astype(kind).tobytes())
    shown = np.asarray(decoded(to_base64(picture))).astype(int)
    assert abs(shown - ramp * 255).max() <= 1


def test_transparent_strokes_of_the_sketch_tool_are_none() -> None:
    mask = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    mask.putpixel((2, 3), (255, 255, 255, 255))
    made = np.asarray(decoded(to_base64({"image": None, "mask": mask})))
    assert np.argwhere(made).tolist() == [[3, 2]]


@pytest.mark.parametrize("kind", [np.uint16, np.int64, np.float32, np.float64, np.complex64])
def test_other_arrays_are_refused_with_their_type(kind: Any) -> None:
    with pytest.raises(SettingsError, match=f"mask_image.*{np.dtype(kind)}"):
        to_base64(np.ones((4, 4), kind))


@pytest.mark.parametrize("error", [RuntimeError, KeyError, NotImplementedError, SyntaxError])
def test_a_picture_that_cannot_be_decoded_is_refused(error: Any, monkeypatch: Any) -> None:
    file = io.BytesIO()
    half("L", (8, 8)).save(file, "PNG")

    def load(*_: Any) -> None:
        raise error("as a test")

    picture = Image.open(file)
    monkeypatch.setattr(PngImageFile, "load", load)
    for value in (picture, {"background": picture, "layers": [], "composite": None}):
        with pytest.raises(SettingsError, match=r"setting mask_image = .*as a test"):
            to_base64(value)

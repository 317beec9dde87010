"""Pictures from outside: one reader for masks, painted masks and conditions.

Needs NumPy and Pillow (9.5 or later), which every host has.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from .schema import SettingsError, image_bytes
from .settings import Settings
from .showable import showable
from .silhouette import image_mask

SIDE = 1024
PIXEL_LIMIT = 89_478_485  # Pillow's own, which WebUIs switch off
_BAND = 2**20  # pixels that are converted at a time

# A program (PostScript, WMF) or files within the file (icons): what decoding them takes is not
# told by the size in their header.
_OPAQUE_FORMATS = frozenset({"EPS", "WMF", "ICO", "ICNS"})
_WITH_ALPHA = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa"})
_UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


class ImageError(ValueError):
    """A picture is refused; the message says why, and the caller names the file or field."""


def read_picture(source: bytes | Path, cover: tuple[int, int] | None = None) -> Image.Image:
    """Read a file, or the bytes of one, as `eight_bit` gives it; of several frames the first.

    Raises ImageError: it is no picture, is broken, or has more than `PIXEL_LIMIT` pixels.
    """
    with _refusing(), _opened(source) as picture:
        return _eight_bit(picture, cover)


def read_numbers(source: bytes | Path) -> Image.Image:
    """Read a picture whose pixels are numbers rather than shades, upright, in its own mode.

    Raises ImageError as `read_picture` does.
    """
    with _refusing(), _opened(source) as picture:
        return _upright(picture)


def eight_bit(picture: Image.Image, cover: tuple[int, int] | None = None) -> Image.Image:
    """Return any picture as one of 8 bits, upright, of bounded size: mode L, RGB or RGBA.

    Transparency of every kind (alpha, a palette's, the transparent colour of a PNG or GIF) becomes
    the alpha of RGBA. Grey of more than 8 bits keeps its range:

    * 16-bit integers: black is 0, white 65535 (a TIFF of 12 bits: 4095).
    * integers of no known depth (mode I): white is 255, or 65535 where a value is above 255;
      beyond 0 to 65535 they are scaled by their own minimum and maximum.
    * floats from 0 to 1: as they are; otherwise scaled by their own finite minimum and maximum,
      as a depth in metres wants. NaN is black, and infinities are the ends.

    Args:
        picture: of any mode.
        cover: (width, height) that the result will be scaled to; it is reduced, by a whole factor,
            only as far as it stays twice as large. None reduces it to at most `SIDE` a side.

    Raises:
        ImageError: the picture is broken, empty, or has more than `PIXEL_LIMIT` pixels.
    """
    with _refusing():
        _check_size(picture)
        return _eight_bit(picture, cover)


def on_black(picture: Image.Image) -> Image.Image:
    """An 8-bit picture as RGB; what is transparent is black, which says nothing as a condition."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, picture).convert("RGB")


def to_condition(
    picture: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Tensor:
    """An 8-bit picture on black, cropped to the shape of `size` (width, height) and scaled to it.

    Returns:
        [3, height, width] in [0, 1].
    """
    return _tensor(ImageOps.fit(on_black(picture), size, resample))


def to_mask(picture: Image.Image) -> Tensor:
    """Where an 8-bit picture says foreground, as booleans [1, H, W]; see `image_mask`."""
    return image_mask(_tensor(picture)[None])


def decode_masks(settings: Settings) -> dict[str | None, Tensor]:
    """The painted masks of the units in front, by the text of the setting that each is from.

    Booleans [1, H, W], neither side above `SIDE`.

    Raises:
        SettingsError: the data is no picture that can be read.
    """
    texts = {layer.mask_image for layer in settings.layers_in_front} | {settings.mask_image}
    return {text: decode_mask(text) for text in texts if text is not None}


def decode_mask(text: str) -> Tensor:
    """One painted mask from base64; see `decode_masks`."""
    try:
        return to_mask(read_picture(image_bytes(text)))
    except ImageError as error:
        allowed = f"a base64 image that can be read ({error})"
        raise SettingsError("mask_image", text, allowed) from error


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError: there is no end to what they raise."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("it is no picture of a known format") from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"it cannot be decoded: {showable(reason, 200)}") from error


@contextmanager
def _opened(source: bytes | Path) -> Iterator[Image.Image]:
    """A picture, checked and decoded."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        if opened.format in _OPAQUE_FORMATS:
            raise ImageError(f"{opened.format} is a format that is not read")
        _check_size(opened)
        _scale_transparent_colour(opened)
        opened.load()
        yield opened


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says; itself, not a copy, where that is not at all."""
    if isinstance(picture, TiffImageFile):
        return picture  # turned as it is decoded; older Pillows leave the tag
    turned = picture.getexif().get(0x0112, 1) != 1
    return ImageOps.exif_transpose(picture) if turned else picture


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if not 0 < width * height <= PIXEL_LIMIT:
        raise ImageError(f"it has {width}x{height} pixels; expected 1 to {PIXEL_LIMIT} in all")


def _scale_transparent_colour(opened: Image.Image) -> None:
    """Give a PNG's transparent colour the 8 bits that its pixels are decoded to."""
    colour = opened.info.get("transparency")
    if not isinstance(opened, PngImageFile) or _is_deep(opened) or colour is None:
        return
    raw_mode = opened.tile[0][3]
    if raw_mode == "1":
        opened.info["transparency"] = 255 if colour else 0
    elif raw_mode in ("L;2", "L;4"):
        opened.info["transparency"] = colour * 255 // (3 if raw_mode == "L;2" else 15)
    elif raw_mode == "RGB;16B":
        opened.info["transparency"] = tuple(value >> 8 for value in colour)


def _eight_bit(picture: Image.Image, cover: tuple[int, int] | None) -> Image.Image:
    """`eight_bit` of a picture that was checked; in bands, so that no copy of all of it is made."""
    ends = _ends(picture) if _is_deep(picture) else None
    picture = _upright(picture)
    factor = _reduction(picture.size, cover)
    rows = factor * max(1, _BAND // (picture.width * factor))
    bands = []
    for band in _bands(picture, rows):
        converted = _converted(band) if ends is None else _grey(band, *ends)
        bands.append(converted.reduce(factor))
    whole = Image.new(bands[0].mode, (bands[0].width, sum(band.height for band in bands)))
    top = 0
    for band in bands:
        whole.paste(band, (0, top))
        top += band.height
    return whole


def _reduction(size: tuple[int, int], cover: tuple[int, int] | None) -> int:
    if cover is None:
        return -(-max(size) // SIDE)
    return max(1, min(have // max(SIDE, 2 * want) for have, want in zip(size, cover, strict=True)))


def _bands(picture: Image.Image, rows: int) -> Iterator[Image.Image]:
    for top in range(0, picture.height, rows):
        yield picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _is_deep(picture: Image.Image) -> bool:
    """Whether the picture is grey of more than 8 bits: its mode is F, I or I;16 with an order."""
    return picture.mode[0] in "FI"


def _converted(band: Image.Image) -> Image.Image:
    if band.mode in _WITH_ALPHA or (band.mode in ("1", "L", "RGB") and "transparency" in band.info):
        return band.convert(_UNMULTIPLIED.get(band.mode, band.mode)).convert("RGBA")
    return band.convert("L" if band.mode in ("1", "L") else "RGB")


def _ends(picture: Image.Image) -> tuple[float, float]:
    """The values of a deep picture that are black and white."""
    # Older Pillows open a PNG of 16 bits as I, which is of 32.
    if picture.mode.startswith("I;16") or (
        picture.mode == "I" and picture.format in ("PNG", "PPM")
    ):
        bits = getattr(picture, "tag_v2", {}).get(258, (16,))[0]
        return 0, 2**bits - 1
    low, high = np.inf, -np.inf
    for band in _bands(picture, max(1, _BAND // picture.width)):
        values = np.asarray(band, dtype=np.float64)
        values = values[np.isfinite(values)]
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
    for white in (1,) if picture.mode == "F" else (255, 65535):
        if low >= 0 and high <= white:
            return 0, white
    return (float(low), float(high)) if low < high else (0, 1)


def _grey(band: Image.Image, black: float, white: float) -> Image.Image:
    values = np.asarray(band, dtype=np.float64)
    scaled = np.nan_to_num((values - black) / (white - black), nan=0).clip(0, 1)
    grey = Image.fromarray(np.rint(scaled * 255).astype(np.uint8))
    colour = band.info.get("transparency")
    if colour is None:
        return grey
    grey = grey.convert("RGBA")
    grey.putalpha(Image.fromarray(np.where(values == colour, 0, 255).astype(np.uint8)))
    return grey


def _tensor(picture: Image.Image) -> Tensor:
    """An 8-bit picture as [C, H, W] in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels.reshape(*pixels.shape[:2], -1).movedim(-1, 0).float() / 255

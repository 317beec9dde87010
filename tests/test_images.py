"""Pictures from outside: every mode and depth, what is broken, and what is too large."""

import base64
import io
import random
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from lib_ccn.images import (
    PIXEL_LIMIT,
    SIDE,
    ImageError,
    decode_mask,
    eight_bit,
    on_black,
    read_numbers,
    read_picture,
    to_condition,
)
from lib_ccn.settings import Settings, SettingsError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
SHOWN = np.rint(RAMP * 255)


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def grey_of(data):
    return np.asarray(on_black(read_picture(data)).convert("L")).astype(int)


def settings(data):
    return Settings(mask_image=base64.b64encode(data).decode())


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, colour_type, row, transparent=None, size=None):
    """A PNG of one row, which Pillow itself would not write."""
    width = size or len(row) * 8 // (depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour_type])
    head = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    middle = chunk(b"tRNS", transparent) if transparent else b""
    parts = (chunk(b"IHDR", head), middle, chunk(b"IDAT", zlib.compress(b"\0" + row)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def tiff(bits, data, size, order="<"):
    """A grey TIFF of unsigned integers, in either byte order."""
    fields = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, 1), (273, 8)]
    fields += [(277, 1), (278, size[1]), (279, len(data))]
    directory = struct.pack(order + "H", len(fields))
    for tag, value in fields:
        directory += struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", value)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", 8 + len(data)) + data + directory + b"\0" * 4


SIXTEEN = np.rint(RAMP * 65535)
DEEP = {
    "PNG of 16 bits": saved(Image.fromarray(SIXTEEN.astype(np.uint16))),
    "TIFF of 16 bits": saved(Image.fromarray(SIXTEEN.astype(np.uint16)), "TIFF"),
    "the same, big-endian": tiff(16, SIXTEEN.astype(">u2").tobytes(), (16, 16), ">"),
    "PGM of 16 bits": b"P5 16 16 65535\n" + SIXTEEN.astype(">u2").tobytes(),
    "16 bits in 32": saved(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"),
    "8 bits in 32": saved(Image.fromarray(SHOWN.astype(np.int32)), "TIFF"),
    "32 bits, scaled": saved(Image.fromarray((RAMP * 2**30 - 5e6).astype(np.int32)), "TIFF"),
    "floats to 1": saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "floats to 255": saved(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"),
    "metres": saved(Image.fromarray((RAMP * 7.5 + 0.5).astype(np.float32)), "TIFF"),
    "about zero": saved(Image.fromarray((RAMP * 2 - 1).astype(np.float32)), "TIFF"),
    "largest floats": saved(Image.fromarray(((RAMP * 2 - 1) * 3e38).astype("f4")), "TIFF"),
}


class TestDepth:
    @pytest.mark.parametrize("name", DEEP)
    def test_a_deep_ramp_keeps_its_range(self, name):
        assert abs(grey_of(DEEP[name]) - SHOWN).max() <= 1

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
    def test_so_does_one_in_memory(self, mode):
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}[mode]
        raw = (SIXTEEN if mode != "F" else RAMP).astype(kind).tobytes()
        picture = Image.frombytes(mode, (16, 16), raw)
        assert abs(np.asarray(eight_bit(picture)) - SHOWN).max() <= 1

    def test_a_dark_map_stays_dark(self):
        dark = Image.fromarray(np.full((4, 4), 6554, np.uint16))
        assert set(grey_of(saved(dark)).ravel()) == {26}

    def test_twelve_bits_are_twelve(self):
        # Two pixels in three bytes: 0 and 4095.
        data = tiff(12, b"\x00\x0f\xff", (2, 1))
        try:
            assert grey_of(data).tolist() == [[0, 255]]
        except ImageError:
            pytest.skip("this Pillow reads no TIFF of 12 bits")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("largest", [1, 40])
    def test_what_is_not_finite_costs_nothing_else(self, value, largest):
        values = (RAMP * largest).astype(np.float32)
        values[3, 3] = value
        shown = grey_of(saved(Image.fromarray(values), "TIFF"))
        assert shown[3, 3] == (255 if value == np.inf else 0)
        shown[3, 3] = SHOWN[3, 3]
        assert abs(shown - SHOWN).max() <= 1

    @pytest.mark.parametrize(("value", "shown"), [(0, 0), (1, 255), (9, 255), (-2, 0), (np.nan, 0)])
    def test_one_value_throughout(self, value, shown):
        picture = Image.fromarray(np.full((4, 4), value, np.float32))
        assert set(np.asarray(eight_bit(picture)).ravel()) == {shown}

    @pytest.mark.parametrize("name", ["PNG of 16 bits", "floats to 1", "metres"])
    def test_a_mask_is_the_brighter_half(self, name):
        mask = decode_mask(settings(DEEP[name]).mask_image)
        assert mask.shape == (1, 16, 16)
        assert mask[0].sum() == 128
        assert mask[0, 8:].all()


# Left red, right white: the red half is transparent where a mode has transparency.
PICTURE = Image.new("RGB", (8, 4), "white")
PICTURE.paste((254, 0, 0), (0, 0, 4, 4))
ALPHA = Image.new("L", (8, 4), 255)
ALPHA.paste(0, (0, 0, 4, 4))
RGBA = PICTURE.copy()
RGBA.putalpha(ALPHA)
TRANSPARENT = {
    "RGBA": saved(RGBA),
    "LA": saved(RGBA.convert("LA")),
    "P": saved(RGBA.quantize(4)),
    "GIF": saved(RGBA, "GIF"),
    "WebP": saved(RGBA, "WEBP", lossless=True),
    "tRNS of RGB": saved(PICTURE, transparency=(254, 0, 0)),
    "tRNS of L": saved(ALPHA, transparency=0),
    "tRNS of 1": saved(ALPHA.convert("1"), transparency=0),
    "tRNS of white, 1": png(1, 0, b"\x0f", b"\0\0"),
    "tRNS of 2 bits": png(2, 0, b"\x55\xff", b"\0\1"),
    "tRNS of 4 bits": png(4, 0, b"\x99\x99\xff\xff", b"\0\x09"),
    "tRNS of 16 bits": png(16, 0, b"\x80\x00" * 4 + b"\xff\xff" * 4, b"\x80\0"),
    "tRNS of RGB, 16 bits": png(16, 2, b"\x80\1" * 12 + b"\xff\xff" * 12, b"\x80\1" * 3),
    "LA of 16 bits": png(16, 4, b"\x80\1\0\0" * 4 + b"\xff\xff\xff\xff" * 4),
}


class TestModes:
    @pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "P"])
    def test_colours_are_colours(self, mode):
        shown = np.asarray(on_black(eight_bit(PICTURE.convert(mode)))).astype(int)
        assert abs(shown - np.asarray(PICTURE)).max() <= 5

    @pytest.mark.parametrize("mode", ["1", "L"])
    def test_greys_are_greys(self, mode):
        black = Image.eval(ALPHA, lambda value: value)
        assert (np.asarray(eight_bit(black.convert(mode))) == np.asarray(black)).all()

    @pytest.mark.parametrize("kind", TRANSPARENT)
    def test_transparent_is_black(self, kind):
        shown = grey_of(TRANSPARENT[kind])
        assert (shown[:, :4] == 0).all()
        assert (shown[:, 4:] == 255).all()

    @pytest.mark.parametrize("kind", TRANSPARENT)
    def test_and_decides_where_a_mask_is(self, kind):
        mask = decode_mask(settings(TRANSPARENT[kind]).mask_image)[0]
        assert mask[:, 4:].all()
        assert not mask[:, :4].any()

    @pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
    def test_so_it_is_in_memory(self, mode):
        if mode == "PA":
            picture = Image.merge("LA", (ALPHA.point(lambda _: 255), ALPHA)).convert("PA")
            picture.putalpha(ALPHA)
        else:
            picture = RGBA.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
        shown = np.asarray(on_black(eight_bit(picture)))
        assert (shown[:, :4] == 0).all()
        assert (shown[:, 4:] >= 254).all()

    def test_half_transparent_is_half_as_bright(self):
        assert grey_of(saved(Image.new("RGBA", (2, 2), (200, 200, 200, 128)))).max() == 100

    def test_white_may_be_the_transparent_colour_of_one_bit(self):
        assert grey_of(png(1, 0, b"\xf0", b"\0\1")).max() == 0

    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_of_several_frames_the_first_counts(self, kind):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert grey_of(data).min() > 250

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_it_is_turned_upright(self, kind):
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        picture = Image.new("L", (16, 8))
        picture.paste(255, (0, 0, 8, 8))
        shown = grey_of(saved(picture.convert("RGB"), kind, exif=exif))
        assert shown.shape == (16, 8)
        assert shown[:7].min() > 200
        assert shown[9:].max() < 50


def odd_exif(orientation=6):
    """A turned JPEG with a signed rational that cannot be written again."""
    directory = struct.pack("<HHHIHH", 2, 0x0112, 3, 1, orientation, 0)
    directory += struct.pack("<HHIII", 0x011A, 10, 1, 38, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + directory + struct.pack("<II", 2**32 - 1, 1)
    return saved(Image.new("RGB", (16, 8)), "JPEG", exif=exif)


WHOLE = {
    "PNG": saved(Image.effect_noise((64, 64), 90)),
    "PNG of 16 bits": saved(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))),
    "JPEG": saved(Image.effect_noise((64, 64), 90), "JPEG"),
    "GIF": saved(Image.effect_noise((64, 64), 90), "GIF"),
    "WebP": saved(Image.effect_noise((64, 64), 90).convert("RGB"), "WEBP"),
    "TIFF": saved(Image.effect_noise((64, 64), 90), "TIFF", compression="tiff_lzw"),
    "BMP": saved(Image.effect_noise((64, 64), 90), "BMP"),
    "TGA": saved(Image.effect_noise((64, 64), 90), "TGA"),
    "DDS": saved(Image.new("RGB", (64, 64)), "DDS"),
    "JPEG 2000": saved(Image.effect_noise((64, 64), 90), "JPEG2000"),
    "ICO": saved(Image.effect_noise((64, 64), 90), "ICO"),
    "EPS": saved(Image.effect_noise((64, 64), 90), "EPS"),
    "odd EXIF": odd_exif(),
}


class TestBroken:
    """Whatever a decoder does with it, it is one refusal."""

    @pytest.mark.parametrize(
        "data",
        [
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"plain text",
            b"\x89PNG\r\n\x1a\n",
            WHOLE["PNG"][:-700],
            WHOLE["JPEG"][:400],
            WHOLE["EPS"],
            WHOLE["ICO"],
            WHOLE["odd EXIF"],
            png(8, 0, b"\0" * 4, size=1 << 30),
        ],
        ids=[
            "SVG",
            "text",
            "signature",
            "short PNG",
            "short JPEG",
            "EPS",
            "icon",
            "EXIF",
            "no memory",
        ],
    )
    def test_it_names_the_field(self, data):
        with pytest.raises(SettingsError, match="setting mask_image = "):
            decode_mask(settings(data).mask_image)

    @pytest.mark.parametrize("error", [RuntimeError, KeyError, NotImplementedError, MemoryError])
    def test_no_list_of_errors_is_guessed(self, error, monkeypatch):
        def load(*_):
            raise error("as a test\x1b[31m")

        monkeypatch.setattr(PngImageFile, "load", load)
        with pytest.raises(SettingsError, match="mask_image") as caught:
            decode_mask(settings(WHOLE["PNG"]).mask_image)
        assert "\x1b" not in str(caught.value)
        with pytest.raises(ImageError, match="cannot be decoded"):
            eight_bit(Image.open(io.BytesIO(WHOLE["PNG"])))

    @pytest.mark.parametrize("kind", WHOLE)
    def test_damaged_it_is_read_or_refused(self, kind):
        chance = random.Random(kind)
        for _ in range(60):
            data = bytearray(WHOLE[kind])
            for _ in range(chance.randrange(1, 6)):
                data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
            del data[chance.choice([len(data), chance.randrange(1, len(data))]) :]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    mask = decode_mask(settings(bytes(data)).mask_image)
                except SettingsError:
                    continue
            assert mask.dtype == torch.bool

    def test_an_interruption_is_none(self, monkeypatch):
        def load(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(PngImageFile, "load", load)
        with pytest.raises(KeyboardInterrupt):
            read_picture(WHOLE["PNG"])


class TestSize:
    def test_pixels_are_counted_before_they_are_decoded(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as WebUIs do
        monkeypatch.setattr(PngImageFile, "load", lambda *_: pytest.fail("it was decoded"))
        head = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")
        with pytest.raises(SettingsError, match=f"60000x60000 pixels.*{PIXEL_LIMIT}"):
            decode_mask(settings(data).mask_image)
        with pytest.raises(ImageError, match="60000x60000"):
            read_numbers(data)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16", "CMYK"])
    def test_a_mask_is_worked_on_small(self, mode):
        white = {"P": 1, "I;16": 65535, "RGBA": (255, 255, 255, 255)}.get(mode, "white")
        picture = Image.new(mode, (3000, 2000))
        picture.paste(white, (0, 0, 1500, 2000))
        kind = "TIFF" if mode == "CMYK" else "PNG"
        mask = decode_mask(settings(saved(picture, kind)).mask_image)
        assert max(mask.shape) <= SIDE
        assert abs(mask.shape[2] / mask.shape[1] - 1.5) < 0.01

    def test_reduced_it_is_the_mean_of_its_pixels(self):
        values = np.random.default_rng(0).integers(0, 256, (2048, 2048), dtype=np.uint8)
        shown = np.asarray(eight_bit(Image.fromarray(values))).astype(float)
        means = values.reshape(1024, 2, 1024, 2).mean((1, 3))
        assert abs(shown - means).max() <= 0.5

    def test_small_ones_keep_every_pixel(self):
        values = np.random.default_rng(0).integers(0, 256, (1024, 700, 4), dtype=np.uint8)
        assert np.array_equal(np.asarray(eight_bit(Image.fromarray(values))), values)

    @pytest.mark.parametrize("size", [(512, 512), (2048, 1024), (64, 96)])
    def test_a_condition_stays_larger_than_what_it_is_for(self, size):
        picture = Image.new("L", (9000, 4000), 128)
        reduced = eight_bit(picture, size)
        assert min(reduced.size) < 4000 or max(size) > 1024
        assert all(
            have >= 2 * want or have == full
            for have, want, full in zip(reduced.size, size, picture.size, strict=True)
        )
        condition = to_condition(reduced, size)
        assert condition.shape == (3, size[1], size[0])
        assert torch.allclose(condition, torch.full((), 128 / 255))

    def test_a_large_and_empty_picture_takes_neither_time_nor_memory(self):
        data = saved(Image.new("1", (9400, 9400)))
        assert len(data) < 60_000
        began = time.monotonic()
        mask = decode_mask(settings(data).mask_image)
        assert max(mask.shape) <= SIDE
        assert time.monotonic() - began < 15

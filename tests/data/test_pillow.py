"""Formats and gray levels that Pillow decodes for us."""

from __future__ import annotations

import io
import logging
import resource
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from absl import logging as absl_logging
from PIL import Image

from repvgg_jax.data.decode import pillow
from repvgg_jax.data.decode.image import CorruptImageError, open_image
from repvgg_jax.errors import RunError
from tests.support.image_files import encoded, noise, tiff

RAMP = np.linspace(0, 255, 16).astype(np.uint8)[None].repeat(4, 0)
WIDE = RAMP.astype(np.uint16) * 257


def gray(data):
    pixels = open_image(data, "x.tif").rgb()
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    "data",
    [
        tiff(RAMP, 8),
        tiff(WIDE),
        tiff(65535 - WIDE, photometric=0),
        tiff(WIDE >> 4, 12),
        tiff(WIDE[..., None].repeat(3, 2), photometric=2),
        tiff((RAMP / 255).astype(np.float32), 32),
        tiff((1 - RAMP / 255).astype(np.float32), 32, photometric=0),
        encoded(WIDE, "TIFF", compression="tiff_lzw"),
        encoded(WIDE, "PNG"),
        b"P5 16 4 65535\n" + WIDE.byteswap().tobytes(),
    ],
    ids=[
        "8 bits",
        "16 bits",
        "16 bits, 0 is white",
        "12 bits",
        "16 bits RGB",
        "float",
        "float, 0 is white",
        "16 bits, compressed",
        "16 bits PNG",
        "16 bits PGM",
    ],
)
def test_levels_of_any_known_range_become_8_bits(data):
    np.testing.assert_array_equal(gray(data), RAMP)


@pytest.mark.parametrize(
    "levels",
    [
        WIDE.astype(np.uint32) * 65537,
        RAMP.astype(np.uint32),
        RAMP.astype(np.int32),
        RAMP.astype(np.int16),
        RAMP.astype(np.float32),
        (RAMP / 255 - 0.1).astype(np.float32),
        np.full((2, 2), np.nan, np.float32),
    ],
    ids=["uint32", "small uint32", "int32", "int16", "float 0 to 255", "negative", "NaN"],
)
def test_levels_of_an_unknown_range_are_refused_and_not_black(levels):
    with pytest.raises(CorruptImageError, match=r"x\.tif.*8 or 16 bits") as error:
        gray(tiff(levels, levels.dtype.itemsize * 8))
    assert "\n" not in str(error.value)


def test_16_bit_images_of_a_12_bit_camera_are_named_once(caplog, monkeypatch):
    monkeypatch.setattr(absl_logging, "_log_counter_per_token", {})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert gray(tiff(WIDE >> 4)).max() == 15
        gray(tiff(WIDE * 0))
    (line,) = caplog.messages
    assert "x.tif is nearly black" in line
    assert "4095 of 65535" in line


def test_every_suffix_of_pillows_image_formats_is_read():
    usual = ".jpg .jpeg .jfif .png .webp .gif .tif .tiff .bmp .ppm .pgm .tga .jp2 .mpo"
    assert set(usual.split()) <= pillow.suffixes()
    assert not {".eps", ".h5", ".mpg", ".pdf", ".txt", ""} & pillow.suffixes()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000"])
def test_the_first_picture_of_other_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    several = kind in ("GIF", "TIFF", "WEBP")
    more = {"save_all": True, "append_images": [Image.fromarray(noise(1))]} if several else {}
    data = encoded(noise(0), kind, **options, **more)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(open_image(data, "x").rgb(), expected)


def test_formats_of_other_programs_are_refused():
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    with pytest.raises(CorruptImageError, match=r"x\.jpg.*EPS"):
        open_image(data, "x.jpg")


def test_the_orientation_of_exif_is_ignored():
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    pixels = noise(0)
    for kind in ("JPEG", "PNG"):
        plain, turned = encoded(pixels, kind), encoded(pixels, kind, exif=exif)
        assert turned != plain
        np.testing.assert_array_equal(open_image(turned, "x").rgb(), open_image(plain, "x").rgb())


def png_of_size(width, height):
    """Returns a PNG whose header claims this size, and which ends there."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"")]
    ends = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


@pytest.mark.filterwarnings("ignore")
def test_a_size_beyond_pillows_limit_is_damage_but_a_lack_of_memory_is_not():
    with pytest.raises(CorruptImageError, match=r"x\.png.*exceeds limit"):
        open_image(png_of_size(60_000, 60_000), "x.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
    try:
        with pytest.raises(RunError, match=r"not enough memory to decode .* x\.png") as error:
            open_image(png_of_size(13_000, 13_000), "x.png")
        assert not isinstance(error.value, CorruptImageError)  # which data.skip_corrupt leaves out
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_pillows_own_messages_which_name_no_file_are_not_printed(caplog):
    pillow._pillow.cache_clear()
    data = tiff(RAMP, 8)
    one, two = struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 256, 3, 2)
    data = data.replace(one, two)  # two widths
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).load()
        assert caught
        caught.clear()
        np.testing.assert_array_equal(gray(data), RAMP)
        samples, thousand = (
            struct.pack("<HHII", 277, 4, 1, 1),
            struct.pack("<HHII", 277, 4, 1, 1000),
        )
        with pytest.raises(CorruptImageError, match=r"x\.tif"):
            gray(data.replace(samples, thousand))
    assert not caught
    assert not caplog.messages

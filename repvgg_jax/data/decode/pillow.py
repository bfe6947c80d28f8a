"""Decoding by Pillow: the formats that it reads, and gray levels of more than 8 bits."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Collection
from logging import CRITICAL, getLogger
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

if TYPE_CHECKING:
    from PIL import Image

# Formats that Pillow opens but leaves to other programs, those of which it reads no pixels, and
# one whose levels have no known range.
_NOT_DECODED = ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")

# Formats whose 16-bit levels Pillow holds as 32-bit integers (PNG in versions before 11).
_WIDENED = ("PNG", "PPM")

# TIFF tags, and the photometric interpretation whose level 0 is white.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


@functools.cache
def suffixes() -> frozenset[str]:
    """Returns the suffixes of the formats that `decode` reads, such as ".jpg", in lower case."""
    image = _pillow()
    read = {*image.OPEN, "MPO"} - {*_NOT_DECODED}  # an MPO file is a JPEG with more images
    return frozenset(s for s, kind in image.registered_extensions().items() if kind in read)


def decode(
    data: bytes,
    where: str,
    most_pixels: int | None = None,
    formats: Collection[str] | None = None,
) -> np.ndarray:
    """Decodes the first image of a file: uint8 RGB [height, width, 3].

    Transparency is dropped. 16-bit levels keep their upper 8 bits, float levels must be in [0, 1].
    Levels of other types have no known range, and are refused rather than read as black or white.
    `most_pixels` and `formats` are as in `image.open_image`.

    Raises:
      Exception: of many types, if the bytes are not an image or are damaged.
    """
    image = _pillow().open(io.BytesIO(data), formats=formats and list(formats))
    if most_pixels is not None and image.width * image.height > most_pixels:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {most_pixels:,}")
    if image.format in _NOT_DECODED:
        raise ValueError(f"the format {image.format} is not supported")
    image.load()
    pixels = np.asarray(_to_rgb(image, where))
    if not pixels.size:
        raise ValueError("it has no pixels")
    return pixels


def image_size(path: str) -> tuple[int, int] | None:
    """Returns (width, height) from the header of an image file; None if it cannot be read."""
    try:
        with _pillow().open(path) as image:
            return image.size
    except Exception:  # of many types, as in `decode`
        return None


@functools.cache
def _pillow() -> ModuleType:
    """Returns `PIL.Image` with all formats loaded."""
    from PIL import Image

    Image.init()  # here, since threads that load formats at the same time may miss one
    # Pillow's own messages are on metadata, which is not used, or come before an error. They name
    # no file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    getLogger("PIL").setLevel(CRITICAL)
    return Image


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    # Pillow's own conversion of these modes clips at 255.
    if image.mode == "F" or image.mode.startswith("I"):
        image = _pillow().fromarray(_gray(image, where))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(image: Image.Image, where: str) -> np.ndarray:
    """Returns the gray levels of a 16-bit or float image: uint8 [height, width]."""
    levels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not (levels.min() >= 0 and levels.max() <= 1):  # also if a level is NaN
            raise ValueError(
                f"its levels {levels.min():g} to {levels.max():g} are outside [0, 1], the range "
                "of floats; save it with levels in [0, 1], or of 8 or 16 bits"
            )
        gray = np.round(levels * 255).astype(np.uint8)
    elif image.mode == "I" and image.format not in _WIDENED:
        raise ValueError("signed and 32-bit levels have no known range; save it with 8 or 16 bits")
    else:
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        gray = (levels.astype(np.uint16) >> (bits - 8)).astype(np.uint8)
        if 0 < levels.max() < 1 << (bits - 4):
            logging.log_first_n(
                logging.WARNING,
                "%s is nearly black: its %d-bit levels end at %d of %d; scale such images to the "
                "full range",
                1,
                where,
                bits,
                levels.max(),
                (1 << bits) - 1,
            )
    return 255 - gray if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else gray

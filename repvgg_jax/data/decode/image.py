"""Decoding of images to RGB pixels, with error messages that name the file or record.

JPEGs are decoded by libjpeg-turbo through simplejpeg. Other images, and JPEGs that may be damaged,
are decoded by Pillow. The pixels are bitwise equal.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from repvgg_jax.data.decode import jpeg
from repvgg_jax.errors import UsageError, one_line, reraise

if TYPE_CHECKING:
    from PIL import Image

# (left, top, right, bottom) in pixels.
Box = tuple[float, float, float, float]


class CorruptImageError(UsageError):
    """An error for an image that cannot be decoded; `where` is its file or record."""

    def __init__(self, where: str, cause: str):
        super().__init__(
            f"cannot decode the image {where}: {cause}; replace or delete it, "
            "or set data.skip_corrupt=True to skip such images"
        )
        self.where = where


@dataclasses.dataclass(frozen=True)
class LazyImage:
    """An image of which only the header has been read, so that crops can be decoded partially.

    Attributes:
      size: (width, height) in pixels.
      decode: function of (rows, factor) that returns at least the top `rows` rows as uint8 RGB,
        either at 1 / factor of their size or at full size.
      where: name of the file or record, for messages.
    """

    size: tuple[int, int]
    decode: Callable[[int, int], np.ndarray]
    where: str

    def rgb(self) -> np.ndarray:
        """Returns the whole image as uint8 [height, width, 3].

        Raises:
          CorruptImageError: if the bytes are damaged or truncated.
        """
        with _named(self.where):
            return self.decode(self.size[1], 1)

    def part(self, box: tuple[int, int, int, int], size: int) -> tuple[np.ndarray, Box]:
        """Decodes only the pixels needed to resize the crop `box` to `size` x `size` pixels.

        A JPEG is decoded down to the crop's last row, and at the smallest of 1, 1/2, 1/4 and 1/8 of
        its size at which the crop still has at least `size` pixels a side.

        Args:
          box: (left, top, right, bottom) of the crop in pixels.
          size: side of the resized crop in pixels.

        Returns:
          Pixels that cover the crop, uint8 [height, width, 3], and the crop's box within them.
          Coordinates are divided by the scale factor: pixel k of libjpeg's reduced image covers
          pixels k * factor ... (k + 1) * factor - 1.

        Raises:
          CorruptImageError: if the bytes are damaged or truncated.
        """
        left, top, right, bottom = box
        side = min(right - left, bottom - top)
        factor = next((f for f in (8, 4, 2) if side >= f * size), 1)
        with _named(self.where):
            pixels = self.decode(bottom, factor)
        if factor > 1 and pixels.shape[1] == self.size[0]:
            factor = 1
        x, y = left // factor, top // factor
        covering = pixels[y : -(-bottom // factor), x : -(-right // factor)]
        inside = (left / factor - x, top / factor - y, right / factor - x, bottom / factor - y)
        return covering, inside


def open_image(data: bytes, where: str) -> LazyImage:
    """Returns an encoded image as a LazyImage; `where` is its name in error messages.

    Raises:
      CorruptImageError: if the bytes are not an image.
    """
    size = jpeg.size(data)
    if size is not None:
        return LazyImage(size, lambda rows, factor: _decode_jpeg(data, rows, factor), where)
    with _named(where):
        image = _open(data)
    return LazyImage(image.size, lambda rows, factor: _pixels(image), where)


def from_array(pixels: np.ndarray) -> LazyImage:
    """Returns uint8 pixels [height, width, 3] as a LazyImage."""
    height, width, _ = pixels.shape
    return LazyImage((width, height), lambda rows, factor: pixels, "in memory")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts grayscale, CMYK, palette and transparent images to RGB, without transparency."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grayscale at 255, which would make most pixels white.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _open(data: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(data))


def _pixels(image: Image.Image) -> np.ndarray:
    image.load()
    return np.asarray(to_rgb(image))


def _decode_jpeg(data: bytes, rows: int, factor: int) -> np.ndarray:
    """Decodes a JPEG by libjpeg, or if that fails by Pillow, which has clearer error messages."""
    pixels = jpeg.decode(data, rows, factor)
    return _pixels(_open(data)) if pixels is None else pixels


def _named(where: str) -> AbstractContextManager[None]:
    # Pillow's plugins raise many exception types, and append " <_io.BytesIO object at ...>".
    return reraise(
        Exception, lambda error: CorruptImageError(where, one_line(error).split(" <_io.")[0])
    )

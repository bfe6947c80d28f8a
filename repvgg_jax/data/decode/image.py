"""Decoding of images to RGB pixels, with errors that name the file or record.

JPEGs are decoded by libjpeg-turbo through simplejpeg; other images, and JPEGs that may be damaged,
by Pillow. Both give the same pixels, bit for bit.
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
    """An image that cannot be decoded; `where` names its file or record."""

    def __init__(self, where: str, cause: str):
        super().__init__(
            f"cannot decode the image {where}: {cause}; replace or delete it, "
            "or set data.skip_corrupt=True to skip such images"
        )
        self.where = where


@dataclasses.dataclass(frozen=True)
class LazyImage:
    """An image whose header alone has been read, so that only the part of a crop is decoded.

    Attributes:
      size: (width, height) in pixels.
      decode: function of (rows, factor) that returns at least the upper `rows` rows as uint8 RGB,
        at 1 / factor of their size or at full size.
      where: name of the file or record, for messages.
    """

    size: tuple[int, int]
    decode: Callable[[int, int], np.ndarray]
    where: str

    def rgb(self) -> np.ndarray:
        """Decodes the whole image: uint8 [height, width, 3].

        Raises:
          CorruptImageError: if the bytes are damaged or truncated.
        """
        with _named(self.where):
            return self.decode(self.size[1], 1)

    def part(self, box: tuple[int, int, int, int], size: int) -> tuple[np.ndarray, Box]:
        """Decodes only the pixels needed to resize the part `box` to `size` pixels a side.

        A JPEG is decoded at the smallest of 1, 1/2, 1/4, 1/8 of its size at which the part still
        has `size` pixels a side, and only down to the part's last row.

        Args:
          box: (left, top, right, bottom) of the part in pixels.
          size: side of the resized part in pixels.

        Returns:
          The pixels that cover the part, uint8 [height, width, 3], and the part's box in them.
          Pixel k of libjpeg's reduced image covers pixels k * factor ... (k + 1) * factor - 1, so
          the coordinates of edges are divided by the factor.

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
    """Reads the header of an encoded image; `where` names it in messages.

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
    """Wraps uint8 pixels [height, width, 3], so that transforms apply to both kinds."""
    height, width, _ = pixels.shape
    return LazyImage((width, height), lambda rows, factor: pixels, "in memory")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts grayscale, CMYK, palette and transparent images; transparency is dropped."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grayscale at 255, which makes most of such an image white.
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
    """Decodes by libjpeg, or else by Pillow, whose error messages are also clearer."""
    pixels = jpeg.decode(data, rows, factor)
    return _pixels(_open(data)) if pixels is None else pixels


def _named(where: str) -> AbstractContextManager[None]:
    # Pillow's plugins raise a dozen types, and name the bytes as " <_io.BytesIO object at ...>".
    return reraise(
        Exception, lambda error: CorruptImageError(where, one_line(error).split(" <_io.")[0])
    )

"""From encoded bytes to RGB pixels, with every failure named after the record it came from.

JPEGs go through libjpeg-turbo by way of simplejpeg, everything else and every doubtful JPEG through
Pillow. Both give the same pixels, bit for bit.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from repvgg_jax.data.decode import jpeg
from repvgg_jax.errors import UsageError, one_line

if TYPE_CHECKING:
    from PIL import Image

# (left, top, right, bottom) in pixels.
Box = tuple[float, float, float, float]


class CorruptImageError(UsageError):
    """An image that cannot be decoded; `where` names its file or record."""

    def __init__(self, where: str, reason: str):
        super().__init__(
            f"cannot decode the image {where}: {reason}; replace or delete it, "
            "or set data.skip_corrupt=True to leave such images out"
        )
        self.where = where


@dataclasses.dataclass(frozen=True)
class LazyImage:
    """An image of which only the header is read, so that a crop can choose what to decode.

    Attributes:
      size: (width, height) in pixels.
      decode: (rows, factor) -> uint8 RGB of at least the upper `rows` rows, at 1 / factor or 1 of
        their size.
      where: its file or record, for messages.
    """

    size: tuple[int, int]
    decode: Callable[[int, int], np.ndarray]
    where: str

    def rgb(self) -> np.ndarray:
        """The whole image, uint8 [h, w, 3].

        Raises:
          CorruptImageError: where the bytes are broken or end early.
        """
        with _naming(self.where):
            return self.decode(self.size[1], 1)

    def part(self, box: tuple[int, int, int, int], size: int) -> tuple[np.ndarray, Box]:
        """Decode no more than the part `box` needs to be resized to `size` pixels a side.

        A JPEG is decoded at the smallest of 1, 1/2, 1/4, 1/8 of its size at which the part still
        has `size` pixels a side, and no further down than the part reaches.

        Returns:
          Pixels, uint8 [h, w, 3], that cover the part and hardly more, and where it lies in them.
          Pixel k of libjpeg's reduced image covers pixels k * factor ... (k + 1) * factor - 1, so
          coordinates of edges are divided by the factor and nothing else.

        Raises: as `rgb`.
        """
        left, top, right, bottom = box
        side = min(right - left, bottom - top)
        factor = next((f for f in (8, 4, 2) if side >= f * size), 1)
        with _naming(self.where):
            pixels = self.decode(bottom, factor)
        if factor > 1 and pixels.shape[1] == self.size[0]:
            factor = 1
        x, y = left // factor, top // factor
        around = pixels[y : -(-bottom // factor), x : -(-right // factor)]
        inside = left / factor - x, top / factor - y, right / factor - x, bottom / factor - y
        return around, inside


def open_image(data: bytes, where: str) -> LazyImage:
    """Read the header of an encoded image; `where` names it in messages.

    Raises:
      CorruptImageError: where the bytes are no image.
    """
    size = jpeg.size(data)
    if size is not None:
        return LazyImage(size, lambda rows, factor: _decode_jpeg(data, rows, factor), where)
    with _naming(where):
        image = _open(data)
    return LazyImage(image.size, lambda rows, factor: _pixels(image), where)


def from_array(pixels: np.ndarray) -> LazyImage:
    """Wrap uint8 pixels [h, w, 3], so that one set of transforms serves both kinds."""
    height, width, _ = pixels.shape
    return LazyImage((width, height), lambda rows, factor: pixels, "in memory")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert greyscale, CMYK, palette and transparent images; transparency is dropped."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit greyscale at 255, which turns most of such an image white.
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
    """What libjpeg refuses Pillow may still read, or it has the better words for it."""
    pixels = jpeg.decode(data, rows, factor)
    return _pixels(_open(data)) if pixels is None else pixels


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types for broken bytes
        # "cannot identify image file <_io.BytesIO object at ...>"
        raise CorruptImageError(where, one_line(error).split(" <_io.")[0]) from error

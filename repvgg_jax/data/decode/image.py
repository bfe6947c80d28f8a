"""Decoding of images to RGB pixels, with error messages that name the file or record.

JPEGs are decoded by libjpeg-turbo through simplejpeg. Other images, and JPEGs that may be damaged,
are decoded by Pillow. The pixels are bitwise equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np

from repvgg_jax.data.decode import jpeg, pillow
from repvgg_jax.errors import RunError, UsageError, one_line

# (left, top, right, bottom) in pixels.
Box = tuple[float, float, float, float]


class CorruptImageError(UsageError):
    """An error for an image that cannot be decoded; `where` is its file, and `cause` the reason."""

    def __init__(self, where: str, cause: str):
        super().__init__(
            f"cannot decode the image {where}: {cause}; replace or delete it, "
            "or set data.skip_corrupt=True to skip such images"
        )
        self.where = where
        self.cause = cause


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
          RunError: if there is not enough memory.
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


def open_image(
    data: bytes,
    where: str,
    most_pixels: int | None = None,
    formats: Collection[str] | None = None,
) -> LazyImage:
    """Returns an encoded image as a LazyImage. Formats other than JPEG are decoded at once.

    Args:
      data: encoded image.
      where: its name in error messages.
      most_pixels: number of pixels above which an image is refused before it is decoded; about 180
        million by default.
      formats: Pillow's names of the formats that are read; by default, all.

    Raises:
      CorruptImageError: if the bytes are not an image, or are a damaged image in a format other
        than JPEG (JPEGs are decoded later).
    """
    with _named(where):
        jpeg.check_scans(data)
    size = jpeg.size(data)

    def by_pillow() -> np.ndarray:
        return pillow.decode(data, where, most_pixels, formats)

    def by_libjpeg(rows: int, factor: int) -> np.ndarray:
        # Where it fails, so does Pillow in most cases, with a clearer message.
        pixels = jpeg.decode(data, rows, factor)
        return by_pillow() if pixels is None else pixels

    if size is not None and (most_pixels is None or size[0] * size[1] <= most_pixels):
        return LazyImage(size, by_libjpeg, where)
    with _named(where):
        if not data:
            raise ValueError("it has no bytes")
        return from_array(by_pillow())


def from_array(pixels: np.ndarray) -> LazyImage:
    """Returns uint8 pixels [height, width, 3] as a LazyImage."""
    height, width, _ = pixels.shape
    return LazyImage((width, height), lambda rows, factor: pixels, "in memory")


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Raises CorruptImageError, naming the image, for any error in the block but MemoryError.

    Sizes beyond Pillow's limit are damage. A smaller image for which there is no memory is not, and
    data.skip_corrupt must not leave it out.
    """
    try:
        yield
    except MemoryError as error:
        raise RunError(
            f"there is not enough memory to decode the image {where}; free some, or decode fewer "
            "images at a time (smaller batches, fewer workers or requests)"
        ) from error
    except Exception as error:
        # Pillow's plugins raise many exception types, and append " <_io.BytesIO object at ...>".
        raise CorruptImageError(where, one_line(error).split(" <_io.")[0]) from error

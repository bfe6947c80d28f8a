"""From encoded bytes to RGB pixels, with every failure named after the record it came from."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from repvgg_jax.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image


class CorruptImageError(UsageError):
    """An image that cannot be decoded; `where` names its file or record."""

    def __init__(self, where: str, reason: str):
        reason = " ".join(reason.split())
        super().__init__(
            f"cannot decode the image {where}: {reason}; replace or delete it, "
            "or set data.skip_corrupt=True to leave such images out"
        )
        self.where = where


@dataclasses.dataclass
class LazyImage:
    """An image of which only the header is read, so that a crop can choose what to decode.

    Attributes:
      encoded: the opened and not yet loaded Pillow image.
      where: its file or record, for messages.
    """

    encoded: Image.Image
    where: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.encoded.size

    def rgb(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Decode to RGB.

        Args:
          at_least: a (width, height) that suffices. A JPEG is then decoded at the smallest of
            1, 1/2, 1/4, 1/8 of its size that still covers it, which saves most of the time.

        Raises:
          CorruptImageError: where the bytes are broken or end early.
        """
        with _naming(self.where):
            if at_least is not None:
                self.encoded.draft(None, at_least)
            self.encoded.load()
            return to_rgb(self.encoded)


def open_image(data: bytes, where: str) -> LazyImage:
    """Read the header of an encoded image; `where` names it in messages.

    Raises:
      CorruptImageError: where the bytes are no image.
    """
    from PIL import Image

    with _naming(where):
        return LazyImage(Image.open(io.BytesIO(data)), where)


def from_array(pixels: np.ndarray) -> LazyImage:
    """Wrap uint8 pixels [h, w, 3], so that one set of transforms serves both kinds."""
    from PIL import Image

    return LazyImage(Image.fromarray(pixels), "in memory")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert greyscale, CMYK, palette and transparent images; transparency is dropped."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit greyscale at 255, which turns most of such an image white.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types for broken bytes
        reason = str(error).split("<_io.")[0].strip() or type(error).__name__
        raise CorruptImageError(where, reason) from error

"""libjpeg-turbo by way of simplejpeg: JPEGs decoded at a scale, and no further down than needed."""

from __future__ import annotations

import numpy as np

# Every complete JPEG ends so; one that has lost its tail doesn't.
_END = b"\xff\xd9"

# Start of frame: baseline, extended, progressive. Markers without a length: TEM, RST0 to SOI.
_FRAMES = (0xC0, 0xC1, 0xC2)
_BARE = (0x01, *range(0xD0, 0xD9))

# Rows below a part that its last rows' upsampled chroma draws on, and then some.
_MARGIN = 8

# From about here Pillow warns of, and then refuses, what may be a decompression bomb.
_MOST_PIXELS = 89_478_485


def size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that `decode` is for; None for all else.

    Not for CMYK, nor for those without an end: whether anything is missing there is for Pillow to
    say, since libjpeg would fill it with grey.
    """
    import simplejpeg

    if not (data.startswith(b"\xff\xd8\xff") and data.endswith(_END)):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    known = colours in ("YCbCr", "Gray") and width * height <= _MOST_PIXELS
    return (width, height) if known else None


def decode(data: bytes, rows: int, factor: int) -> np.ndarray | None:
    """Decode at least the upper `rows` rows, at 1 / factor of their size.

    The rows below are left out by writing a smaller height into the header: libjpeg then skips
    what follows, most of whose cost, entropy decoding, cannot be saved in any other direction.

    Args:
      data: of which `size` is known.
      rows: of the full image.
      factor: 1, 2, 4 or 8, for libjpeg's scaled inverse DCT.

    Returns:
      uint8 RGB [ceil(height' / factor), ceil(width / factor), 3]; None where libjpeg refuses.
    """
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        kept = rows + _MARGIN * factor
        if kept < height:
            data, height = _with_height(data, kept, height)
        # Not strict: libjpeg calls the rows left out "extraneous". Pillow ignores its warnings too.
        return simplejpeg.decode_jpeg(
            data,
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            min_factor=factor,
            strict=False,
        )
    except ValueError:
        return None


def _with_height(data: bytes, kept: int, height: int) -> tuple[bytes, int]:
    """The same JPEG with another height in its frame header, and the height that it now has."""
    at = _frame(data)
    if at is None:
        return data, height
    return b"".join((data[: at + 5], kept.to_bytes(2, "big"), data[at + 7 :])), kept


def _frame(data: bytes) -> int | None:
    """Where the frame header's marker begins: FF Cn, length (2), precision (1), height (2)."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            return at
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None

"""Partial JPEG decoding, at a reduced scale and of the top rows only, by simplejpeg."""

import numpy as np

# The end-of-image marker, which is missing in a truncated JPEG.
_END = b"\xff\xd9"

# Start-of-frame markers: baseline, extended, progressive. Without length: TEM, RST0 to RST7, SOI.
_FRAME_MARKERS = (0xC0, 0xC1, 0xC2)
_MARKERS_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))

# Additional rows, which chroma upsampling of the last requested rows reads.
_MARGIN = 8

# The size above which Pillow suspects a decompression bomb.
_MAX_PIXELS = 89_478_485


# Progressive JPEGs have about ten scans; libjpeg reads the whole image once for each.
_MAX_SCANS = 200
_SCAN = b"\xff\xda"


def check_scans(data: bytes) -> None:
    """Raises ValueError for a JPEG of so many scans that a small file would take minutes."""
    if data.startswith(b"\xff\xd8\xff") and data.count(_SCAN) > _MAX_SCANS:
        raise ValueError(f"it has {data.count(_SCAN)} scans, more than {_MAX_SCANS}")


def size(data: bytes) -> tuple[int, int] | None:
    """Returns (width, height) if `data` is a JPEG that `decode` supports, else None.

    CMYK JPEGs are not supported, nor are JPEGs without an end marker, in which libjpeg would
    silently fill missing data with gray.
    """
    import simplejpeg

    if not (data.startswith(b"\xff\xd8\xff") and data.endswith(_END)):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception:  # ValueError, and KeyError for a JPEG without a frame header
        return None
    known = colors in ("YCbCr", "Gray") and width * height <= _MAX_PIXELS
    return (width, height) if known else None


def decode(data: bytes, rows: int, factor: int) -> np.ndarray | None:
    """Decodes at least the top `rows` rows, at 1 / factor of their size.

    It replaces the height in the header by a smaller one, so that libjpeg skips the other rows and
    their entropy decoding, which is most of the cost.

    Args:
      data: JPEG for which `size` does not return None.
      rows: number of rows at full size.
      factor: 1, 2, 4 or 8, for libjpeg's scaled inverse DCT.

    Returns:
      uint8 RGB [ceil(height' / factor), ceil(width / factor), 3]; None if libjpeg fails.
    """
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        kept = rows + _MARGIN * factor
        frame = _frame(data) if kept < height else None
        if frame is not None:
            height = kept
            data = b"".join((data[: frame + 5], height.to_bytes(2, "big"), data[frame + 7 :]))
        # Strict mode would fail on libjpeg's warning about the "extraneous" data of skipped rows.
        return simplejpeg.decode_jpeg(
            data,
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            min_factor=factor,
            strict=False,
        )
    except Exception:
        return None


def _frame(data: bytes) -> int | None:
    """Returns the offset of the frame header: FF Cn, length (2), precision (1), height (2), ..."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            return at
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _MARKERS_WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None

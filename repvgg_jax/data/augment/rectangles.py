"""Random rectangles, for random resized crops and random erasing."""

import math

import numpy as np

Rectangle = tuple[int, int, int, int]
Range = tuple[float, float]


def random_box(
    rng: np.random.Generator, width: int, height: int, ratio: Range = (3 / 4, 4 / 3)
) -> Rectangle:
    """Returns the box of a random crop of an image (Szegedy et al., arXiv 1409.4842, section 6).

    The fraction of the image's area is drawn uniformly from 0.08 to 1, and width / height
    log-uniformly from `ratio`. If ten boxes do not fit, returns the largest allowed central box.

    Returns:
      (left, top, right, bottom) in pixels.
    """
    box = _random_rectangle(rng, width, height, (0.08, 1.0), ratio)
    if box is not None:
        return box
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_erasing(pixels: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Fills a random rectangle with random pixels (arXiv 1708.04896, algorithm 1).

    The fraction of the image's area is drawn uniformly from 0.02 to 1/3, and height / width
    log-uniformly from 0.3 to 1/0.3. The image is unchanged with probability 1 - `probability`, or
    if ten rectangles do not fit.

    Returns:
      uint8 [height, width, 3], a copy if something is erased.
    """
    if rng.random() >= probability:
        return pixels
    height, width, channels = pixels.shape
    # Height and width are swapped, since the ratio is height / width.
    rectangle = _random_rectangle(rng, height, width, (0.02, 1 / 3), (0.3, 1 / 0.3))
    if rectangle is None:
        return pixels
    top, left, bottom, right = rectangle
    erased = pixels.copy()
    size = (bottom - top, right - left, channels)
    erased[top:bottom, left:right] = rng.integers(0, 256, size, np.uint8)
    return erased


def _random_rectangle(
    rng: np.random.Generator, width: int, height: int, share: Range, ratio: Range
) -> Rectangle | None:
    """Returns a random rectangle for ranges of area and width / height; None if ten do not fit."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*share)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return None

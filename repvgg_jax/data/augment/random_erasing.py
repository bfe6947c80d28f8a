"""Random erasing: a rectangle of noise, so that a net does not lean on one part of the image."""

from __future__ import annotations

import math

import numpy as np


def random_erasing(
    pixels: np.ndarray,
    rng: np.random.Generator,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """Fill a random rectangle with random pixels (arXiv 1708.04896, Algorithm 1).

    The rectangle's share of the image is uniform in `area`, its height / width log-uniform in
    `aspect`; ten that don't fit leave the image as it is.

    Args:
      pixels: uint8 [h, w, 3].
      rng: that all is drawn from.
      probability: with which there is a rectangle at all.
      area, aspect: ranges.

    Returns:
      uint8 [h, w, 3]; a copy where something is erased.
    """
    if rng.random() >= probability:
        return pixels
    height, width, channels = pixels.shape
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        size = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            erased = pixels.copy()
            noise = rng.integers(0, 256, (h, w, channels), np.uint8)
            erased[top : top + h, left : left + w] = noise
            return erased
    return pixels

"""Random erasing: a rectangle of noise, so that a net does not rely on one part of an image."""

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
    """Fills a random rectangle with random pixels (arXiv 1708.04896, algorithm 1).

    After ten rectangles that do not fit, the image is unchanged.

    Args:
      pixels: uint8 [height, width, 3].
      rng: random generator.
      probability: probability of erasing anything.
      area: range of the rectangle's fraction of the image, drawn uniformly.
      aspect: range of the rectangle's height / width, drawn log-uniformly.

    Returns:
      uint8 [height, width, 3], a copy if something is erased.
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

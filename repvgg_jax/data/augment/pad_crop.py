"""Vectorized padding, random crop and flip of a batch of small images."""

from typing import NamedTuple

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def pad_crop_flip(
    images: np.ndarray, padding: int, flip: bool, seed: int, positions: np.ndarray
) -> np.ndarray:
    """Pads images with zeros, crops them randomly to their original size, and flips half of them.

    Args:
      images: uint8 [n, height, width, 3].
      padding: padding on each side, in pixels.
      flip: whether to flip each image horizontally with probability 1/2.
      seed: seed for augmentation.
      positions: positions of the images in the stream, [n].

    Returns:
      uint8 [n, height, width, 3].
    """
    count, height, width, channels = images.shape
    top, left, mirrored = draw_crops(padding, flip, seed, positions)
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # A gather of flattened pixels is several times faster than indexing with three arrays.
    base = np.arange(count)[:, None] * padded.shape[1] + rows
    flat = base[:, :, None] * padded.shape[2] + columns[:, None, :]
    return padded.reshape(-1, channels)[flat]


class Crops(NamedTuple):
    """Random crops and flips, one for each image.

    Attributes:
      top: first row of the crop of the padded image, int64 [n].
      left: first column, int64 [n].
      mirrored: whether to flip the crop horizontally, bool [n].
    """

    top: np.ndarray
    left: np.ndarray
    mirrored: np.ndarray


def draw_crops(padding: int, flip: bool, seed: int, positions: np.ndarray) -> Crops:
    """Returns the crop and flip of each image; arguments are those of `pad_crop_flip`."""
    span = np.uint64(2 * padding + 1)
    top, left = (random_bits(seed, positions, stream) % span for stream in (0, 1))
    mirrored = np.zeros(len(positions), bool)
    if flip:
        mirrored = random_bits(seed, positions, 2) >> np.uint64(63) == 1
    return Crops(top.astype(np.int64), left.astype(np.int64), mirrored)


def random_bits(seed: int, positions: np.ndarray, stream: int) -> np.ndarray:
    """Returns 64 random bits, uint64 [n], for each position; a function of all three arguments.

    The bits are SplitMix64's finalizer (Steele et al., OOPSLA 2014) of a counter, computed for all
    positions at once. NumPy would need a generator for each position.
    """
    key = _mix(_mix(np.array([seed % 2**64], np.uint64)) + np.array([stream], np.uint64))
    return _mix(key + np.asarray(positions).astype(np.uint64) * _GOLDEN)


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

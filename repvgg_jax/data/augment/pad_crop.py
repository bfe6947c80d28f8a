"""Vectorized padding, random crop and flip of a batch of small images."""

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
    span = np.uint64(2 * padding + 1)
    top = (random_bits(seed, positions, 0) % span).astype(np.int64)
    left = (random_bits(seed, positions, 1) % span).astype(np.int64)
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    if flip:
        mirrored = random_bits(seed, positions, 2) >> np.uint64(63) == 1
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # A gather of flattened pixels is several times faster than indexing with three arrays.
    base = np.arange(count)[:, None] * padded.shape[1] + rows
    flat = base[:, :, None] * padded.shape[2] + columns[:, None, :]
    return padded.reshape(-1, channels)[flat]


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

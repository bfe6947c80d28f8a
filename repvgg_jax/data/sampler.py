"""The order of examples in the infinite training stream, a function of (seed, position) only.

The order does not depend on the number of hosts and workers, or on the batch size.
"""

from functools import lru_cache

import numpy as np

# Spawn keys of the generators, one for each purpose, so that purposes are independent.
_SHUFFLE = 0
CROP = 1
POLICY = 2
ERASING = 3


def stream_indices(size: int, seed: int, start: int, count: int) -> np.ndarray:
    """Returns the indices of the examples at positions start .. start + count - 1 of the stream.

    Epoch e has positions e * size .. (e + 1) * size - 1 and is a random permutation of range(size)
    that depends on (seed, e).

    Args:
      size: number of examples, at least 1.
      seed: base seed for shuffling, at least 0.
      start: first position, at least 0.
      count: number of positions, at least 0.

    Returns:
      Indices, int64 [count].
    """
    indices = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, offset = divmod(start + done, size)
        taken = min(size - offset, count - done)
        indices[done : done + taken] = _permutation(size, seed, epoch)[offset : offset + taken]
        done += taken
    return indices


def example_rng(seed: int, position: int, purpose: int = CROP) -> np.random.Generator:
    """Returns the random generator for one augmentation of the example at `position`."""
    return _generator(seed, purpose, position)


# Room for two epochs of two streams; a permutation of ImageNet takes 10 MB.
@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    order = _generator(seed, _SHUFFLE, epoch).permutation(size)
    order.flags.writeable = False  # the cached array is shared by all callers
    return order


def _generator(seed: int, purpose: int, count: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, count))
    return np.random.Generator(np.random.Philox(sequence))

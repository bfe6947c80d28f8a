"""Sources and batches for tests of the input pipeline."""

from __future__ import annotations

import itertools

import numpy as np

from repvgg_jax.data.augment.transforms import Transform
from repvgg_jax.data.sources.base import ArraySource


def array_source(count, size=8):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    return ArraySource("noise", tuple("0123456789"), images, np.arange(count, dtype=np.int32) % 10)


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys() == {"image", "label", "mask"}
        for key in batch:
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key])


def joined(parts):
    """Returns the global batches, concatenated from those of several processes."""
    return [{k: np.concatenate([b[k] for b in row]) for k in row[0]} for row in zip(*parts)]  # noqa: B905


def take(iterator, count):
    return list(itertools.islice(iterator, count))


PLAIN = Transform("none", 8)
AUGMENTED = [Transform("pad_crop", 8, padding=2), Transform("resized_crop", 8, resize=10)]

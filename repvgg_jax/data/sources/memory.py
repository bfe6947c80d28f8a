"""Decoding of a small data set into arrays."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from repvgg_jax.data.sources.base import ArraySource, EncodedSource
from repvgg_jax.errors import UsageError

# Records per task: enough to amortize a read, few enough to occupy all threads.
_CHUNK = 512


def load_into_memory(source: EncodedSource) -> ArraySource:
    """Decodes all of `source`, whose images must have the same size.

    With `skip_corrupt`, corrupt images are left out: the result is shorter than the source by
    `len(result.skipped)`.

    Raises:
      CorruptImageError: at the first corrupt image, unless the source may skip it.
      UsageError: if sizes differ, a label is out of range, or no image is left.
    """
    chunks = [
        range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [part for part in pool.map(lambda chunk: _decode(source, chunk), chunks) if part]
    if not parts:
        raise UsageError(f"{source.name} has no image that can be decoded")
    shapes = sorted({images.shape[1:] for images, _ in parts})
    if len(shapes) > 1:
        raise UsageError(f"{source.name}: the images differ in size: {shapes[0]}, {shapes[-1]}")
    return ArraySource(
        name=source.name,
        class_names=source.class_names,
        images=np.concatenate([images for images, _ in parts]),
        labels=np.concatenate([labels for _, labels in parts]),
        skipped=frozenset(source.skipped),
    )


def _decode(source: EncodedSource, indices: range) -> tuple[np.ndarray, np.ndarray] | None:
    images, labels = [], []
    for record in source.read(indices):
        example = source.decode(record)
        if example is None:
            continue
        if images and example.image.shape != images[0].shape:
            raise UsageError(
                f"{record.where} is {example.image.shape}, others are {images[0].shape}; "
                "a data set in memory needs images of one size"
            )
        images.append(example.image)
        labels.append(example.label)
    return (np.stack(images), np.asarray(labels, np.int32)) if images else None

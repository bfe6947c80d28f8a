"""Batches: a pure function of (seed, step), cut over hosts, made ahead of time by threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from repvgg_jax.data.augment.pad_crop import pad_crop_flip
from repvgg_jax.data.augment.transforms import (
    Transform,
    augment_pixels,
    eval_image,
    fit,
    train_image,
)
from repvgg_jax.data.decode.image import LazyImage, from_array
from repvgg_jax.data.sampler import stream_indices
from repvgg_jax.data.sources.base import ArraySource, EncodedSource, Example, Source
from repvgg_jax.errors import UsageError

Batch = dict[str, np.ndarray]

# Batches made ahead of the one in use.
_AHEAD = 2


def train_batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 4,
    augmentation_seed: int | None = None,
) -> Iterator[Batch]:
    """Endless training batches; `start_step=k` is the same as dropping the first k.

    Step s holds positions s * batch_size .. (s + 1) * batch_size - 1 of the stream, whatever the
    number of processes and workers. Where a corrupt image is skipped, the next index's image
    stands in for it, so the mask is all ones.

    Args:
      source: what to read; in memory or streamed.
      transform: whose training half is applied.
      batch_size: over all processes.
      seed: of the order and the augmentation, at least 0.
      start_step: the first step to yield.
      process_index, process_count: this process gets rows `[i * local : (i + 1) * local]` of every
        batch, local = batch_size / process_count.
      workers: threads that read and decode a streamed source.
      augmentation_seed: of the augmentation alone; `seed` by default.

    Yields:
      {"image": uint8 [local, image_size, image_size, 3], "label": int32 [local],
      "mask": float32 [local]}.

    Raises:
      UsageError: at once where the sizes don't go together; from `next` whatever reading raises.
    """
    local = _check(source, batch_size, process_index, process_count, workers)
    if seed < 0 or start_step < 0:
        raise UsageError(f"seed={seed} and start_step={start_step} must not be negative")
    first = process_index * local
    changes = seed if augmentation_seed is None else augmentation_seed

    if isinstance(source, ArraySource):

        def batch_at(step: int) -> Batch:
            positions = step * batch_size + first + np.arange(local)
            indices = stream_indices(len(source), seed, int(positions[0]), local)
            images = _train_images(source.images[indices], transform, changes, positions)
            return _batch(images, source.labels[indices], np.ones(local, np.float32))

        return _ahead(batch_at, itertools.count(start_step))

    def image_at(index: int, position: int) -> Example:
        for tried in range(len(source)):
            example = _read(
                source,
                (index + tried) % len(source),
                lambda image: train_image(image, transform, changes, position),
            )
            if example is not None:
                return example
        raise UsageError(f"{source.name}: none of {len(source)} images can be decoded")

    def batch_of(step: int) -> Batch:
        start = step * batch_size + first
        indices = stream_indices(len(source), seed, start, local).tolist()
        examples = map(image_at, indices, range(start, start + local))
        return _filled(examples, local, transform.image_size)

    return _stream(batch_of, start_step, None, workers)


def eval_batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 4,
) -> Iterator[Batch]:
    """Every example once, in order: ceil(n / batch_size) batches, the same number on each process.

    The last batch is padded with zeros whose mask is 0; so is a corrupt image that is skipped.
    Arguments, shapes and errors are those of `train_batches`.
    """
    local = _check(source, batch_size, process_index, process_count, workers)
    steps = -(-len(source) // batch_size)
    first = process_index * local
    empty = np.zeros((transform.eval_size, transform.eval_size, 3), np.uint8)

    if isinstance(source, ArraySource):

        def batch_at(step: int) -> Batch:
            start = step * batch_size + first
            images = _eval_images(source.images[start : start + local], transform)
            labels = source.labels[start : start + local]
            missing = local - len(labels)
            return _batch(
                np.concatenate([images, np.broadcast_to(empty, (missing, *empty.shape))]),
                np.pad(labels, (0, missing)),
                np.pad(np.ones(len(labels), np.float32), (0, missing)),
            )

        return _ahead(batch_at, range(steps))

    def image_at(index: int) -> Example | None:
        if index >= len(source):
            return None
        return _read(source, index, lambda image: eval_image(image, transform))

    def batch_of(step: int) -> Batch:
        start = step * batch_size + first
        return _filled(map(image_at, range(start, start + local)), local, transform.eval_size)

    return _stream(batch_of, 0, steps, workers)


def _check(
    source: Source, batch_size: int, process_index: int, process_count: int, workers: int
) -> int:
    """Rows of a batch in this process."""
    if not len(source):
        raise UsageError(f"{source.name} is empty")
    if batch_size < 1 or batch_size % process_count:
        raise UsageError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise UsageError(f"process_index={process_index} must be in [0, {process_count})")
    if workers < 0:
        raise UsageError(f"workers={workers} must not be negative")
    return batch_size // process_count


def _read(
    source: Source, index: int, transform: Callable[[LazyImage], np.ndarray]
) -> Example | None:
    if isinstance(source, EncodedSource):
        return source.decode(source.read([index])[0], transform)
    image, label = source[index]
    return Example(transform(from_array(image)), label)


def _train_images(
    images: np.ndarray, transform: Transform, seed: int, positions: np.ndarray
) -> np.ndarray:
    """`train_image` over a batch; one gather where the size is right already."""
    if transform.augmentation == "resized_crop":
        pairs = zip(images, positions.tolist(), strict=True)
        return np.stack([train_image(from_array(x), transform, seed, p) for x, p in pairs])
    size = transform.image_size
    if images.shape[1:3] != (size, size):
        images = np.stack([fit(from_array(image), size) for image in images])
    if transform.augmentation == "pad_crop":
        images = pad_crop_flip(images, transform.padding, transform.flip, seed, positions)
    if not transform.changes_pixels:
        return images
    pairs = zip(images, positions.tolist(), strict=True)
    return np.stack([augment_pixels(image, transform, seed, position) for image, position in pairs])


def _eval_images(images: np.ndarray, transform: Transform) -> np.ndarray:
    size = transform.eval_size
    right = images.shape[1:3] == (size, size) and transform.augmentation != "resized_crop"
    if right or not len(images):
        return images if right else np.zeros((0, size, size, 3), np.uint8)
    return np.stack([eval_image(from_array(image), transform) for image in images])


def _batch(images: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> Batch:
    return {"image": images, "label": labels, "mask": mask}


def _filled(examples: Iterable[Example | None], count: int, size: int) -> Batch:
    """A batch of `count` examples, each put in its row as it comes; None leaves zeros, mask 0."""
    batch = _batch(
        np.empty((count, size, size, 3), np.uint8),
        np.zeros(count, np.int32),
        np.ones(count, np.float32),
    )
    for row, example in enumerate(examples):
        if example is None:
            batch["image"][row], batch["mask"][row] = 0, 0
        else:
            batch["image"][row], batch["label"][row] = example
    return batch


def _ahead(batch_at: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
    """batch_at over `steps`, computed by one thread a little ahead of its consumer."""
    with ThreadPoolExecutor(1, "batches") as pool:
        pending: deque[Future[Batch]] = deque()
        for step in steps:
            pending.append(pool.submit(batch_at, step))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _stream(
    batch_of: Callable[[int], Batch], start: int, stop: int | None, workers: int
) -> Iterator[Batch]:
    """batch_of(start), batch_of(start + 1), ... each made by one of Grain's threads."""
    import grain

    batches = grain.MapDataset.range(start, 2**62 if stop is None else stop).map(batch_of)
    ahead = workers + _AHEAD if workers else 0
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
    return iter(batches.to_iter_dataset(options))

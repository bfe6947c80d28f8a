"""Batches that are a function of (seed, step) only, split over hosts and prefetched by threads."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from repvgg_jax.data.augment.pad_crop import pad_crop_flip
from repvgg_jax.data.augment.transforms import Transform, augment_pixels, eval_image, train_image
from repvgg_jax.data.decode.image import LazyImage, from_array
from repvgg_jax.data.sampler import stream_indices
from repvgg_jax.data.sources.base import ArraySource, Example, Source
from repvgg_jax.errors import UsageError

Batch = dict[str, np.ndarray]

_PREFETCH = 2  # batches


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
    """Yields training batches indefinitely, from `start_step` on.

    The batch of step s has positions s * batch_size .. (s + 1) * batch_size - 1 of the stream,
    whatever the number of processes and workers. A corrupt image that is skipped is replaced by the
    image at the next index, so the mask is all ones.

    Example:
      >>> source = load_source("digits", "digits", None, "train")
      >>> batches = train_batches(source, Transform("pad_crop", 8, padding=1), 128, seed=0)
      >>> next(batches)["image"].shape
      (128, 8, 8, 3)

    Args:
      source: data source, in memory or streamed.
      transform: transform of the images.
      batch_size: number of images per batch over all processes.
      seed: base seed for shuffling and augmentation, at least 0.
      start_step: step of the first batch.
      process_index: index i of this process, which gets rows `[i * local : (i + 1) * local]` of
        every batch, where local = batch_size / process_count.
      process_count: number of processes.
      workers: number of threads that read and decode a streamed source.
      augmentation_seed: base seed for augmentation; `seed` by default.

    Yields:
      {"image": uint8 [local, image_size, image_size, 3], "label": int32 [local],
      "mask": float32 [local]}.

    Raises:
      UsageError: if an argument is invalid, or an image cannot be read (while iterating).
    """
    local = _local_batch_size(source, batch_size, process_index, process_count, workers)
    if seed < 0 or start_step < 0:
        raise UsageError(f"seed={seed}, start_step={start_step}: must not be negative")
    augmentation_seed = seed if augmentation_seed is None else augmentation_seed
    first = process_index * local
    rows = _TrainRows(transform, batch_size, first, local, seed, augmentation_seed)
    if isinstance(source, ArraySource):
        return _prefetched(partial(rows.of_arrays, source), itertools.count(start_step))
    return _stream(partial(rows.decoded, source), start_step, None, workers)


class _TrainRows(NamedTuple):
    """The rows of training batches that this process gets, as functions of source and step.

    Attributes:
      transform: transform of the images.
      batch_size: number of images per batch over all processes.
      first: index of the first row in a batch.
      local: number of rows.
      seed: base seed for shuffling.
      augmentation_seed: base seed for augmentation.
    """

    transform: Transform
    batch_size: int
    first: int
    local: int
    seed: int
    augmentation_seed: int

    def of_arrays(self, source: ArraySource, step: int) -> Batch:
        """Returns the rows of a step from a source in memory."""
        positions = step * self.batch_size + self.first + np.arange(self.local)
        indices = stream_indices(len(source), self.seed, int(positions[0]), self.local)
        given = source.images[indices]
        images = _train_images(given, self.transform, self.augmentation_seed, positions)
        mask = np.ones(self.local, np.float32)
        return {"image": images, "label": source.labels[indices], "mask": mask}

    def decoded(self, source: Source, step: int) -> Batch:
        """Returns the rows of a step from a source of encoded images."""
        start = step * self.batch_size + self.first
        indices = stream_indices(len(source), self.seed, start, self.local).tolist()
        positions = range(start, start + self.local)
        examples = map(partial(self._example, source), indices, positions)
        return _collect(examples, self.local, self.transform.image_size)

    def _example(self, source: Source, index: int, position: int) -> Example:
        """Returns the example at an index, or at the next whose image can be decoded."""

        def transformed(image: LazyImage) -> np.ndarray:
            return train_image(image, self.transform, self.augmentation_seed, position)

        for offset in range(len(source)):
            (record,) = source.read([(index + offset) % len(source)])
            example = source.decode(record, transformed)
            if example is not None:
                return example
        raise UsageError(f"{source.name}: none of {len(source)} images could be decoded")


def eval_batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 4,
) -> Iterator[Batch]:
    """Yields ceil(n / batch_size) batches on each process, with every example once and in order.

    The last batch is padded with zero images of mask 0, which also replace skipped corrupt images.
    Arguments, shapes and errors are as in `train_batches`.
    """
    local = _local_batch_size(source, batch_size, process_index, process_count, workers)
    steps = -(-len(source) // batch_size)
    first = process_index * local
    size = transform.eval_size

    if isinstance(source, ArraySource):

        def batch_at(step: int) -> Batch:
            start = step * batch_size + first
            images = source.images[start : start + local]
            batch, count = _zeros(local, size), len(images)
            if images.shape[1:3] == (size, size) and transform.augmentation != "resized_crop":
                batch["image"][:count] = images
            else:
                for row, image in enumerate(images):
                    batch["image"][row] = eval_image(from_array(image), transform)
            batch["label"][:count] = source.labels[start : start + local]
            batch["mask"][:count] = 1
            return batch

        return _prefetched(batch_at, range(steps))

    def example_at(index: int) -> Example | None:
        if index >= len(source):
            return None
        (record,) = source.read([index])
        return source.decode(record, lambda image: eval_image(image, transform))

    def streamed_batch_at(step: int) -> Batch:
        start = step * batch_size + first
        return _collect(map(example_at, range(start, start + local)), local, size)

    return _stream(streamed_batch_at, 0, steps, workers)


def _local_batch_size(
    source: Source, batch_size: int, process_index: int, process_count: int, workers: int
) -> int:
    """Returns the number of images per batch and process, after checking the arguments."""
    if not len(source):
        raise UsageError(f"{source.name} is empty")
    if batch_size < 1 or batch_size % process_count:
        raise UsageError(
            f"batch_size={batch_size}: must be a positive multiple of process_count={process_count}"
        )
    if not 0 <= process_index < process_count:
        raise UsageError(f"process_index={process_index}: must be in [0, {process_count})")
    if workers < 0:
        raise UsageError(f"workers={workers}: must not be negative")
    return batch_size // process_count


def _train_images(
    images: np.ndarray, transform: Transform, seed: int, positions: np.ndarray
) -> np.ndarray:
    """Applies `train_image` to a batch, vectorized if the images have the right size."""
    size = transform.image_size
    if transform.augmentation == "resized_crop" or images.shape[1:3] != (size, size):
        pairs = zip(images, positions.tolist(), strict=True)
        return np.stack([train_image(from_array(x), transform, seed, p) for x, p in pairs])
    if transform.augmentation == "pad_crop":
        images = pad_crop_flip(images, transform.padding, transform.flip, seed, positions)
    if not transform.changes_pixels:
        return images
    pairs = zip(images, positions.tolist(), strict=True)
    return np.stack([augment_pixels(image, transform, seed, position) for image, position in pairs])


def _zeros(count: int, size: int) -> Batch:
    images = np.zeros((count, size, size, 3), np.uint8)
    labels = np.zeros(count, np.int32)
    return {"image": images, "label": labels, "mask": np.zeros(count, np.float32)}


def _collect(examples: Iterable[Example | None], count: int, size: int) -> Batch:
    """Collects `count` examples into a batch; None becomes a zero image with mask 0."""
    batch = _zeros(count, size)
    for row, example in enumerate(examples):
        if example is not None:
            batch["image"][row], batch["label"][row] = example
            batch["mask"][row] = 1
    return batch


def _prefetched(batch_at: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
    """Yields `batch_at(step)` for each step, computed ahead of the consumer by a thread."""
    # Without `with`, which would join the thread: Python may close an endless generator while the
    # interpreter exits, when that fails. The thread ends when the pool is freed with this frame.
    pool = ThreadPoolExecutor(1, "batches")
    pending: deque[Future[Batch]] = deque()
    for step in steps:
        pending.append(pool.submit(batch_at, step))
        if len(pending) > _PREFETCH:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _stream(
    batch_at: Callable[[int], Batch], start: int, stop: int | None, workers: int
) -> Iterator[Batch]:
    """Yields batch_at(start), ..., batch_at(stop - 1), computed by Grain's threads."""
    import grain

    batches = grain.MapDataset.range(start, 2**62 if stop is None else stop).map(batch_at)
    ahead = workers + _PREFETCH if workers else 0
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
    return iter(batches.to_iter_dataset(options))

"""Dynamic batching: images of concurrent requests are decoded in threads and computed together."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from repvgg_jax.data.decode.image import LazyImage
from repvgg_jax.serve.model import Model


@dataclass(frozen=True)
class _Row:
    """A prepared image that has waited since `arrival`; `result` will be its probabilities."""

    image: np.ndarray
    arrival: float
    result: asyncio.Future[np.ndarray]


class Batcher:
    """Classifies images that arrive one by one in batches; an asynchronous context manager.

    A thread computes one batch at a time. The next one starts when the thread is free, and it is
    full, or no other image is being decoded, or its first image has waited `max_delay` seconds. So
    a lone client never waits, and many clients fill the batches.

    The event loop is not blocked: images are decoded by `threads` other threads, at most
    `2 * max_batch + threads` ahead of their results; further images wait as encoded bytes. Exit
    waits for the batch and the decodes in progress.

    Args:
      model: classifier.
      max_batch: largest number of images in a batch, at most the model's.
      max_delay: time in seconds that an image may wait for others while the thread is free.
      threads: number of threads that decode.
      on_batch: function called with the size of each batch.
    """

    def __init__(
        self,
        model: Model,
        max_batch: int,
        max_delay: float,
        threads: int,
        on_batch: Callable[[int], object],
    ):
        self._model = model
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._on_batch = on_batch
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._computer = ThreadPoolExecutor(1, "compute")
        self._room = asyncio.Semaphore(2 * max_batch + threads)
        self._rows: list[_Row] = []
        self._decoding = 0
        self._decoded = asyncio.Event()  # a decode has ended, perhaps in an error

    async def classify(self, open_image: Callable[[], LazyImage]) -> np.ndarray:
        """Returns the probabilities of an image, which is opened and decoded in a thread.

        Raises:
          CorruptImageError: if the image cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        async with self._room:
            self._decoding += 1
            try:
                image = await loop.run_in_executor(
                    self._decoders, lambda: self._model.prepare(open_image())
                )
                row = _Row(image, loop.time(), loop.create_future())
                self._rows.append(row)
            finally:
                self._decoding -= 1
                self._decoded.set()
            return await row.result

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._compute_batches())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        self._decoders.shutdown()
        self._computer.shutdown()

    async def _compute_batches(self) -> None:
        while True:
            await self._compute(await self._next_batch())

    async def _compute(self, rows: list[_Row]) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._on_batch(len(rows))
            images = np.stack([row.image for row in rows])
            found = await loop.run_in_executor(self._computer, self._model.run, images)
            results = [
                partial(row.result.set_result, p) for row, p in zip(rows, found, strict=True)
            ]
        except Exception as error:  # ends these requests only
            results = [partial(row.result.set_exception, error) for row in rows]
        for row, finish in zip(rows, results, strict=True):
            if not row.result.done():  # it may have been cancelled meanwhile
                finish()

    async def _next_batch(self) -> list[_Row]:
        """Returns the rows of the next batch once it should start."""
        while not self._is_ready():
            self._decoded.clear()
            deadline = self._rows[0].arrival + self._max_delay if self._rows else None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._decoded.wait()
        rows, self._rows = self._rows[: self._max_batch], self._rows[self._max_batch :]
        return rows

    def _is_ready(self) -> bool:
        """Drops rows whose requests were cancelled; returns True if the rest should start."""
        self._rows = [row for row in self._rows if not row.result.done()]
        if not self._rows:
            return False
        waited = asyncio.get_running_loop().time() - self._rows[0].arrival
        full = len(self._rows) >= self._max_batch
        return full or not self._decoding or waited >= self._max_delay

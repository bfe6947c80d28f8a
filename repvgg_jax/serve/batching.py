"""Dynamic batching: images of concurrent requests are decoded in threads and computed together."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

    The event loop is not blocked: images are decoded by `threads` other threads. On exit, the
    images accepted so far are computed.

    Args:
      model: classifier.
      max_batch: largest number of images in a batch.
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
        on_batch: Callable[[int], object] = lambda size: None,
    ):
        self._model = model
        self._max_batch = min(max_batch, model.batch_size)
        self._max_delay = max_delay
        self._on_batch = on_batch
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._computer = ThreadPoolExecutor(1, "compute")
        self._rows: asyncio.Queue[_Row] = asyncio.Queue()
        self._decoding = 0

    async def classify(self, open_image: Callable[[], LazyImage]) -> np.ndarray:
        """Returns the probabilities of an image, which is opened and decoded in a thread.

        Raises:
          CorruptImageError: if the image cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        self._decoding += 1
        try:
            image = await loop.run_in_executor(
                self._decoders, lambda: self._model.prepare(open_image())
            )
        finally:
            self._decoding -= 1
        row = _Row(image, loop.time(), loop.create_future())
        self._rows.put_nowait(row)
        return await row.result

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._compute_batches())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._rows.join()
        self._task.cancel()
        self._decoders.shutdown()
        self._computer.shutdown()

    async def _compute_batches(self) -> None:
        while True:
            rows = await self._next_batch()
            try:
                await self._compute([row for row in rows if not row.result.done()])
            finally:
                for _ in rows:
                    self._rows.task_done()

    async def _compute(self, rows: list[_Row]) -> None:
        """Computes a batch of rows, without those whose requests were cancelled before."""
        if not rows:
            return
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
        rows = [await self._rows.get()]
        deadline = rows[0].arrival + self._max_delay
        while len(rows) < self._max_batch and (self._decoding or not self._rows.empty()):
            try:
                async with asyncio.timeout_at(deadline):
                    rows.append(await self._rows.get())
            except TimeoutError:
                break
        return rows

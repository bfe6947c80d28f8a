"""Prefetching of batches to the devices."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from repvgg_jax.runtime.mesh import shard_batch

_ON_DEVICE = 2  # batches: one in use, and the next


class Prefetcher:
    """An iterator that prefetches a process's rows of endless batches to the devices."""

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh):
        self._batches = batches
        self._mesh = mesh
        self._ready: deque[dict[str, Any]] = deque()

    def __next__(self) -> dict[str, Any]:
        self._fill(_ON_DEVICE)
        return self._ready.popleft()

    def peek(self) -> dict[str, Any]:
        """Returns the next batch without taking it."""
        self._fill(1)
        return self._ready[0]

    def _fill(self, count: int) -> None:
        while len(self._ready) < count:
            self._ready.append(shard_batch(next(self._batches), self._mesh))

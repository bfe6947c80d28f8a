"""Prefetching of batches to the devices."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from repvgg_jax.runtime.mesh import shard_batch

_ON_DEVICE = 2  # batches: one in use, and the next


class Prefetcher:
    """An iterator that prefetches a process's rows of endless batches to the devices.

    Attributes:
      waited: seconds spent waiting for host batches, excluding the first ones.
    """

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh):
        self.waited = 0.0
        self._batches = batches
        self._mesh = mesh
        self._ready: deque[dict[str, Any]] = deque()

    def __next__(self) -> dict[str, Any]:
        started = time.monotonic()
        first = not self._ready
        while len(self._ready) < _ON_DEVICE:
            self._ready.append(shard_batch(next(self._batches), self._mesh))
        if not first:
            self.waited += time.monotonic() - started
        return self._ready.popleft()

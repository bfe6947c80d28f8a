"""Batches on their way to the devices, and how long training waited for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from repvgg_jax.runtime.mesh import shard_batch

_AHEAD = 2  # batches on the devices: one in use, one that is there when it is done


class Feed:
    """Hands out batches that are on the devices already, while the next ones travel.

    Args:
      batches: this process's rows of host batches, without end.
      mesh: to split them over.

    Attributes:
      waited: seconds that were spent waiting for host batches, after the first ones.
    """

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh):
        self.waited = 0.0
        self._batches, self._mesh = batches, mesh
        self._ready: deque[dict[str, Any]] = deque()

    def __next__(self) -> dict[str, Any]:
        started, first = time.monotonic(), not self._ready
        while len(self._ready) < _AHEAD:
            self._ready.append(shard_batch(next(self._batches), self._mesh))
        if not first:
            self.waited += time.monotonic() - started
        return self._ready.popleft()

    def __iter__(self) -> Feed:
        return self

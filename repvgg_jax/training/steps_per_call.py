"""The number of steps that one call of a compiled loop takes."""

import math
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

# A stop request waits for the end of up to two calls.
_CALL_SECONDS = 0.25
_TIMED_CALLS = 3
_GROWTH = 8
MOST = 128


class StepsPerCall:
    """Chooses the number of steps in a call; more steps hide the time between calls.

    The first call, which compiles, takes one step, and a few more are timed; the fastest counts,
    since others may have been disturbed. From then on the number is fixed: the steps of a quarter
    second, or 1 if a step takes longer. It is equal in all processes. Results do not depend on it.

    Args:
      most: largest number that may be chosen.
      given: the number; None to choose it.

    Attributes:
      number: number of steps that the next call should take at most.
    """

    def __init__(self, most: int = MOST, given: int | None = None):
        self.number = 1
        self.most = min(given or MOST, most)
        self._given = given is not None
        self._calls = 0
        self._seconds = math.inf  # of a step

    def wait_and_time(self, began: float, steps: int, result: object) -> None:
        """Waits for the result of one of the first calls, and chooses the number for the next.

        Args:
          began: `time.monotonic()` before the call.
          steps: number of steps that the call took.
          result: arrays that the call returned.
        """
        self._calls += 1
        if self._given:
            self.number = self.most
        elif 1 < self._calls <= 1 + _TIMED_CALLS:
            jax.block_until_ready(result)
            self._seconds = min(self._seconds, _longest((time.monotonic() - began) / steps))
            fitting = int(_CALL_SECONDS / self._seconds)
            self.number = max(1, min(fitting, self.number * _GROWTH, self.most))


def _longest(seconds: float) -> float:
    """Returns the maximum over all processes (a collective call)."""
    if jax.process_count() == 1:
        return seconds
    return float(multihost_utils.process_allgather(np.float32(seconds)).max())

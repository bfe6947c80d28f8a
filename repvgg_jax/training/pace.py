"""The speed of training, without evaluation and compilation."""

from collections import deque
from itertools import islice

_RECENT_SECONDS = 1.0  # or more; reports of a fast device come in bursts


class Pace:
    """Measures training speed from the times at which steps were reported."""

    def __init__(self, step: int, batch_size: int, now: float) -> None:
        self._batch_size = batch_size
        self._step = step
        self._now = now
        self._first: tuple[int, float] | None = None  # (steps, seconds), with compilation
        self._steps = 0  # in all later intervals
        self._seconds = 0.0
        self._recent: deque[tuple[int, float]] = deque()  # (steps, seconds)

    def advance(self, step: int, now: float) -> float | None:
        """Ends an interval of training; returns recent images per second, or None without steps."""
        steps, seconds = step - self._step, now - self._now
        if steps <= 0 or seconds <= 0:
            return None
        if self._first is None:
            self._first = steps, seconds
        else:
            self._steps += steps
            self._seconds += seconds
        self._step = step
        self._now = now
        self._recent.append((steps, seconds))
        while sum(seconds for _, seconds in islice(self._recent, 1, None)) >= _RECENT_SECONDS:
            self._recent.popleft()
        steps, seconds = map(sum, zip(*self._recent, strict=True))
        return steps * self._batch_size / seconds

    def restart(self, step: int, now: float) -> None:
        """Excludes the time since the last report, which was not only training."""
        if self._first is None and step > self._step:
            self._first = 0, 0.0  # the compilation is in the excluded time
        self._recent.clear()
        self._step = max(step, self._step)
        self._now = now

    def overall(self) -> float:
        """Returns images per second in all intervals after the first, or else in the first."""
        steps, seconds = self._steps, self._seconds
        if not steps and self._first:
            steps, seconds = self._first
        return steps * self._batch_size / seconds if steps else 0.0

    def seconds_for(self, steps: int) -> float | None:
        """Returns the expected duration of a number of steps; None if it is not known yet."""
        rate = self.overall()
        return max(steps, 0) * self._batch_size / rate if rate else None

"""Progress of long work on files: a bar on a terminal, or else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_LINE_SECONDS = 10.0


class ProgressMeter:
    """A context manager that shows progress towards a total.

    Args:
      what: name of the work, such as "writing train".
      total: count at the end.
      unit: "images", or "B" for bytes, shown as MB.
      start: count that was reached before.
      stream: stream to print to; standard error by default.
    """

    def __init__(
        self, what: str, total: int, unit: str, start: int = 0, stream: TextIO | None = None
    ) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._start = start
        self._count = start
        self._stream = sys.stderr if stream is None else stream
        self._start_time = time.monotonic()
        self._last_line_time = self._start_time
        self._bar = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=what,
                total=total,
                initial=start,
                unit=unit if unit == "B" else f" {unit}",
                unit_scale=unit == "B",
                dynamic_ncols=True,
                file=self._stream,
            )

    def add(self, count: int) -> None:
        """Adds to the count."""
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
        elif (now := time.monotonic()) - self._last_line_time >= _LINE_SECONDS:
            self._last_line_time = now
            self._line(now)

    def _line(self, now: float) -> None:
        rate = (self._count - self._start) / max(now - self._start_time, 1e-9)
        scale, unit = (1e6, "MB") if self._unit == "B" else (1, self._unit)
        print(
            f"{self._what}: {self._count / scale:,.0f} of {self._total / scale:,.0f} {unit} "
            f"({self._count / max(self._total, 1):.0%}), {rate / scale:,.0f} {unit}/s",
            file=self._stream,
            flush=True,
        )

    def __enter__(self) -> ProgressMeter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and (now := time.monotonic()) - self._start_time >= 1:
            self._line(now)

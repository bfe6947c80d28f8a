"""Progress of long operations: a progress bar on a terminal, otherwise a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_SECONDS = 10.0


@contextmanager
def progress(work: str, total: int, unit: str, start: int = 0) -> Iterator[Callable[[int], object]]:
    """Shows progress on standard error; the context value is a function that advances the count.

    Args:
      work: description of the operation, such as "writing train".
      total: count at the end.
      unit: "images", or "B" for bytes, which are shown as MB.
      start: initial count, of a resumed operation.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        scaled = unit == "B"
        options = {"unit": unit if scaled else f" {unit}", "unit_scale": scaled}
        with tqdm(desc=work, total=total, initial=start, dynamic_ncols=True, **options) as bar:
            yield bar.update
        return
    scale, unit = (1e6, "MB") if unit == "B" else (1, unit)
    start_time = last_line_time = time.monotonic()
    count = start

    def print_line() -> None:
        rate = (count - start) / max(time.monotonic() - start_time, 1e-9)
        print(
            f"{work}: {count / scale:,.0f} of {total / scale:,.0f} {unit} "
            f"({count / max(total, 1):.0%}), {rate / scale:,.0f} {unit}/s",
            file=sys.stderr,
            flush=True,
        )

    def add(more: int) -> None:
        nonlocal count, last_line_time
        count += more
        if time.monotonic() - last_line_time >= _LINE_SECONDS:
            last_line_time = time.monotonic()
            print_line()

    yield add
    if time.monotonic() - start_time >= 1:
        print_line()

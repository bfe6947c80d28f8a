"""The parts of a benchmark, each in a process that has the device to itself, within a time limit.

A part is a command of Python that writes its rows to stdout as they come, one JSON object per line.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from experiments.benchmarks.measuring import as_one_line
from experiments.benchmarks.processes import rows_of

_LEFT_OUT = "left out, the time is up"


class Part(NamedTuple):
    """A part: its name, the arguments of Python, and the environment variables to set."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = {}


def run_parts(
    parts: Iterable[Part], minutes: float, output: Path, line: Callable[[Mapping[str, Any]], str]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of all parts as they come, and prints each.

    A part that fails, or that there is no time for, has a row with `error`.

    Args:
      parts: parts in the order in which they are run.
      minutes: time for all.
      output: file of the rows; that of a part's messages is beside it.
      line: returns a row as one line of text.
    """
    start = time.monotonic()
    for name, command, environment in parts:
        left = 60 * minutes - (time.monotonic() - start)
        log = output.with_name(f"{output.stem}_{name}.log")
        found: Iterable[dict[str, Any]] = [{"error": _LEFT_OUT}]
        if left > 0:
            print(f"[{time.monotonic() - start:3.0f} s] {name}: its log is {log}", flush=True)
            found = rows_of(command, environment, log, left)
        for row in found:
            row = {**row, "part": name}
            print(f"[{time.monotonic() - start:3.0f} s] {line(row)}", flush=True)
            yield row


def write_rows(measure: Callable[[TextIO], None]) -> None:
    """Calls a function with the file of this part's rows; writes a row with `error` if it fails.

    All else that this process or its libraries print to stdout goes to stderr.
    """
    rows = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        measure(rows)
    except Exception as error:
        print(json.dumps({"error": as_one_line(error)}), file=rows, flush=True)

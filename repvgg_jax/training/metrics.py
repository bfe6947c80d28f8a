"""Reads the metrics of a run, `metrics.jsonl`."""

import os
from typing import Any

from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import local_path, parse_json

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl` in the order written, without an incomplete last line.

    Raises:
      FileNotFoundError: if there is no such file.
      UsageError: if a line before the last is not a row of metrics; the message has its number.
    """
    lines = local_path(path).read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            if not {"step", "kind", "seconds"} <= row.keys():
                raise ValueError("it lacks step, kind or seconds")
        except ValueError as error:
            if number == len(lines):  # the process died while writing it
                break
            raise UsageError(
                f"{path}, line {number}: {error}; each line must be a JSON object such as "
                '{"step": 1, "kind": "train", "seconds": 0.5}. Fix or delete that line.'
            ) from error
        rows.append(row)
    return rows

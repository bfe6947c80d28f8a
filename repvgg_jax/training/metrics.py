"""Reads the metrics of a run, `metrics.jsonl`."""

import json
import os
from pathlib import Path
from typing import Any

from repvgg_jax.errors import UsageError

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl` in the order written, without an incomplete last line.

    Raises:
      FileNotFoundError: if there is no such file.
      UsageError: if a line before the last is not a row of metrics; the message has its number.
    """
    lines = Path(path).read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"step", "kind", "seconds"} <= row.keys():
                raise ValueError("not a JSON object with step, kind and seconds")
        except ValueError as error:
            if number == len(lines):  # the process died while writing it
                break
            raise UsageError(
                f"{path}, line {number}: {error}; each line must be a JSON object such as "
                '{"step": 1, "kind": "train", "seconds": 0.5}. Fix or delete that line.'
            ) from error
        rows.append(row)
    return rows

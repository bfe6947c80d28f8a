"""Reading `metrics.jsonl`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from repvgg_jax.errors import UsageError

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, in the order written, without a torn last line.

    Raises:
      FileNotFoundError: where there is no such file.
      UsageError: where a line before the last is no JSON object with a step, naming it.
    """
    lines = Path(path).read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"step", "kind", "seconds"} <= row.keys():
                raise ValueError("no JSON object with step, kind and seconds")
        except ValueError as error:
            if number == len(lines):  # the process died while writing it
                break
            raise UsageError(
                f"{path}, line {number}: {error}; each line must be a JSON object such as "
                '{"step": 1, "kind": "train", "loss": 2.3}. Mend or remove that line.'
            ) from error
        rows.append(row)
    return rows

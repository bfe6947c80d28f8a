"""Reads the metrics of a run, `metrics.jsonl`."""

import os
from collections.abc import Collection
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


def best_evaluation(
    path: str | os.PathLike[str], steps: Collection[int]
) -> dict[str, float] | None:
    """Returns the step and top-1 of the best evaluation at one of the steps; None without one.

    Of equal ones it is the latest, as among the checkpoints that are kept.
    """
    rows = [row for row in read_metrics(path) if row["kind"] == "eval" and row["step"] in steps]
    found = [(row["top1"], row["step"]) for row in rows if row.get("top1") is not None]
    if not found:
        return None
    top1, step = max(found)
    return {"step": step, "top1": top1}

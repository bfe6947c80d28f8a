"""The files that a run writes for machines: `metrics.jsonl` and JSON trees, whole or not at all."""

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


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree as JSON in one go: a reader sees the old file or the new one, whole.

    Raises:
      ValueError: where a number is not finite, which JSON has no word for.
      TypeError: where a leaf is none of JSON's types.
    """
    replace_text(Path(path), json.dumps(tree, indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one go, by way of a draft beside it."""
    # In the same folder, as os.replace is atomic only within one file system.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

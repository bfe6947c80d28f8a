"""The files that a run writes for machines: `metrics.jsonl` and JSON trees, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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

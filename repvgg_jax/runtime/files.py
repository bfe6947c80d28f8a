"""Atomic writes of text and JSON files: readers never see a partial file."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree to a JSON file atomically.

    Raises:
      ValueError: if a number is not finite, which JSON cannot represent.
      TypeError: if the type of a leaf is not supported by JSON.
    """
    replace_text(Path(path), json.dumps(tree, indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a text file atomically, by renaming a temporary file."""
    # The temporary file is in the same folder: os.replace is atomic only within a file system.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

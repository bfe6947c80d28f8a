"""Atomic writes of text and JSON files: a reader sees the old file or the new one."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree to a JSON file, atomically.

    Raises:
      ValueError: if a number is not finite, which JSON cannot represent.
      TypeError: if a leaf does not have one of JSON's types.
    """
    replace_text(Path(path), json.dumps(tree, indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a text file, atomically: a draft beside it takes its place."""
    # The draft is in the same folder, as os.replace is atomic only within one file system.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

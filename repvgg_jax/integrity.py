"""Checksums of the files of a folder, which storage that errs in silence is held against."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from repvgg_jax.errors import DamagedError
from repvgg_jax.records import write_json

CHECKSUMS = "sha256.json"


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file in the folders of a folder into it."""
    write_json(folder / CHECKSUMS, {name: _sha256(folder / name) for name in _files(folder)})


def check_checksums(folder: Path) -> None:
    """Raises DamagedError that names a file which is missing or not what was written.

    A folder without checksums, whose writer died before it came to them, passes.
    """
    if not (folder / CHECKSUMS).exists():
        return
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        differing = [name for name in expected if _sha256(folder / name) != expected[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedError(f"the checkpoint {folder} cannot be read ({error})") from error
    if differing:
        raise DamagedError(
            f"the checkpoint {folder} cannot be read ({differing[0]} is not what was written)"
        )


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.glob("*/**/*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

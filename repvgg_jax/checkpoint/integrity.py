"""Whether files of arrays are what was written: checksums, names and shapes, causes named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import logging

from repvgg_jax.errors import DamagedError, RunError, UsageError, one_line
from repvgg_jax.runtime.files import write_json

CHECKSUMS = "sha256.json"
# What keeps a process from reading files that may be as they should.
_NOT_THE_FILES = {
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EINTR),
}


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file in the folders of a folder into it."""
    write_json(folder / CHECKSUMS, {name: _sha256(folder / name) for name in _files(folder)})


def check_checksums(folder: Path) -> None:
    """Raises DamagedError that names a file which is missing or not what was written.

    A folder without checksums, whose writer died before it came to them, passes.
    """
    if not (folder / CHECKSUMS).exists():
        logging.warning("%s has no %s: it is read unchecked", folder, CHECKSUMS)
        return
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        differing = [name for name in expected if _sha256(folder / name) != expected[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise _unreadable(folder, error) from error
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


def read_named(where: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; Orbax and TensorStore raise a dozen types for a damaged folder.

    Raises:
      DamagedError: where what is there cannot be read.
      RunError: where this process could not read it now, whatever is there.
    """
    try:
        return read()
    except Exception as error:
        raise _unreadable(where, error) from error


def _unreadable(where: Path, error: Exception) -> RunError:
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    cause = root_cause(error)
    if out_of_memory or getattr(cause, "errno", None) in _NOT_THE_FILES:
        return RunError(f"the checkpoint {where} could not be read now ({one_line(cause)})")
    return DamagedError(f"the checkpoint {where} cannot be read ({one_line(cause)})")


def root_cause(error: BaseException) -> BaseException:
    """Returns the operating system's error behind one of Orbax or TensorStore, or else `error`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return cause
        if code := re.search(r"os_error_code=\W*(\d+)", str(cause)):
            return OSError(int(code[1]), os.strerror(int(code[1])))
        cause = cause.__cause__ or cause.__context__
    return error


def check_shapes(where: Path, expected: Any, metadata: Any) -> None:
    """Raises UsageError that lists which names or shapes of a checkpoint are not the net's."""

    def shapes(tree: Any) -> dict[str, tuple]:
        names = partial(jax.tree_util.keystr, simple=True, separator="/")
        return {names(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(tree)}

    if metadata is None:
        raise UsageError(f"the checkpoint {where} holds no `variables`: it is none of ours")
    ours, theirs = shapes(expected), read_named(where, lambda: shapes(metadata.tree))
    if ours == theirs:
        return
    missing = sorted(ours.keys() - theirs.keys())
    extra = sorted(theirs.keys() - ours.keys())
    reshaped = [
        f"{name} {theirs[name]}, not {ours[name]}"
        for name in sorted(ours.keys() & theirs)
        if ours[name] != theirs[name]
    ]
    parts = [
        f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (("lacks", missing), ("also holds", extra), ("has", reshaped))
        if names
    ]
    raise UsageError(f"the checkpoint {where} is of another net: it {'; it '.join(parts)}")

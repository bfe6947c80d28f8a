"""Integrity checks of checkpoints: checksums, array names and shapes, and read errors."""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import logging

from repvgg_jax.config.fields import former_names
from repvgg_jax.errors import DamagedError, RunError, UsageError, one_line
from repvgg_jax.runtime.files import parse_json, write_json

CHECKSUMS = "sha256.json"
# Operating system errors that do not mean that a file is damaged.
_TRANSIENT = {
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EINTR),
}


def write_checksums(folder: Path) -> None:
    """Writes `sha256.json` to a folder, with the SHA-256 of each file in its subfolders."""
    files = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    write_json(folder / CHECKSUMS, sums)


def check_checksums(folder: Path) -> None:
    """Raises DamagedError if a file is missing or does not match its checksum.

    A folder without checksums passes with a warning: its writer may have died before adding them.
    """
    if not (folder / CHECKSUMS).exists():
        logging.warning("%s has no %s and is read without verification", folder, CHECKSUMS)
        return
    try:
        expected = parse_json((folder / CHECKSUMS).read_bytes())
        differing = [name for name in expected if _sha256(folder / name) != expected[name]]
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    if differing:
        raise DamagedError(
            f"the checkpoint {folder} cannot be read ({differing[0]} does not match its checksum)"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_named(where: Path, read: Callable[[], Any]) -> Any:
    """Returns the result of `read`; converts its exceptions to one-line errors that name `where`.

    Raises:
      DamagedError: if the files cannot be read.
      RunError: if reading fails for another reason, such as a lack of memory.
    """
    try:
        return read()
    except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        raise _unreadable(where, error) from error


def _unreadable(where: Path, error: Exception) -> RunError:
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    cause = root_cause(error)
    if out_of_memory or getattr(cause, "errno", None) in _TRANSIENT:
        return RunError(f"the checkpoint {where} could not be read ({one_line(cause)}); try again")
    return DamagedError(f"the checkpoint {where} cannot be read ({one_line(cause)})")


def root_cause(error: BaseException) -> BaseException:
    """Returns the OSError that caused an Orbax or TensorStore error, or else `error` itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return cause
        if code := re.search(r"os_error_code=\W*(\d+)", str(cause)):
            return OSError(int(code[1]), os.strerror(int(code[1])))
        cause = cause.__cause__ or cause.__context__
    return error


def check_shapes(where: Path, expected: Any, metadata: Any) -> None:
    """Raises UsageError if the checkpoint's array names or shapes differ from the net's.

    `metadata` is Orbax's metadata of the item `variables`, or None if that item is missing.
    """

    def shapes(tree: Any) -> dict[str, tuple]:
        names = partial(jax.tree_util.keystr, simple=True, separator="/")
        return {names(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(tree)}

    if metadata is None:
        raise UsageError(
            f"the checkpoint {where} has no `variables` item; it is not a repvgg_jax checkpoint"
        )
    ours = shapes(expected)
    theirs = read_named(where, lambda: shapes(metadata.tree))
    if ours == theirs:
        return
    if former := former_names(theirs.keys() - ours.keys()):
        raise UsageError(
            f"the checkpoint {where} was written by an earlier version with other parameter names "
            f"({', '.join(former)}); open it with that version, or train again in a new --workdir"
        )
    missing = sorted(ours.keys() - theirs.keys())
    extra = sorted(theirs.keys() - ours.keys())
    reshaped = [
        f"{name} {theirs[name]}, not {ours[name]}"
        for name in sorted(ours.keys() & theirs)
        if ours[name] != theirs[name]
    ]
    parts = [
        f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (("missing", missing), ("unexpected", extra), ("shape of", reshaped))
        if names
    ]
    raise UsageError(f"the checkpoint {where} does not match the net: {'; '.join(parts)}")

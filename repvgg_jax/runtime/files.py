"""Paths that users name, atomic writes, whole lines, and JSON files that may be damaged.

A run relies on a POSIX file system: it appends to, renames and locks files, and lists what it has
just written. Paths must therefore be on a mounted file system: `local_path` refuses URLs.
"""

import difflib
import fcntl
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from repvgg_jax.errors import RunError, UsageError, described, one_line

_MOUNT = (
    "mount the bucket (gcsfuse, Mountpoint for S3, or the CSI driver of your cluster) and give the "
    "path under the mount, see docs/guides/scale.md"
)


def local_path(path: str | os.PathLike[str], option: str = "") -> Path:
    """Returns a path that a user gave, with `~` expanded.

    Every option, config field and public function that takes a path calls it.

    Args:
      path: path of a file or folder.
      option: name of the option or field, for messages.

    Raises:
      UsageError: for a URL, an empty path, and a `~` that stands for no home folder.

    Example:
      >>> local_path("runs/b1")
      PosixPath('runs/b1')
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"{option or 'the path'} is {described(path)}; pass a string or a Path")
    text = os.fspath(path)
    given = f"{option}={text}" if option else text
    if not text:
        raise UsageError(f"{option or 'a path'} is empty; give a path, or leave it out")
    # One slash is enough, since pathlib shortens gs://bucket to gs:/bucket.
    if match := re.match(r"([a-z][a-z0-9+.-]+):/", text, re.IGNORECASE):
        scheme = match[1].lower()
        remedy = "download it and give the path of the file" if "http" in scheme else _MOUNT
        if scheme == "file":
            remedy = f"give the path itself: {unquote(urlsplit(text).path)}"
        raise UsageError(f"{given} is a URL, which this program cannot use as a path; {remedy}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{given}: the home folder that ~ stands for is unknown; give the whole path"
        ) from None


def near_folder(path: Path, holding: str = "") -> str:
    """Returns "; did you mean ...?" with a folder of a similar name beside `path`, or "".

    Args:
      path: path of a folder that is missing.
      holding: name of a file that the other folder must have.
    """
    with suppress(OSError):
        names = [other.name for other in path.parent.iterdir() if (other / holding).exists()]
        names = [name for name in names if name != path.name and (path.parent / name).is_dir()]
        for name in difflib.get_close_matches(path.name, names, n=1):
            return f"; did you mean {path.parent / name}?"
    return ""


def read_json(path: Path, remedy: str, kind: type = dict) -> Any:
    """Returns the content of a JSON file that a run wrote, an object unless `kind` is list.

    Raises:
      UsageError: if the file cannot be read, is empty or incomplete, or holds something else. The
        message ends with the remedy.
    """
    try:
        return parse_json(path.read_bytes(), kind)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({one_line(error, 100)}); {remedy}") from error


def parse_json(text: bytes, kind: type = dict) -> Any:
    """Returns the JSON object or list in a text; raises ValueError for anything else."""
    if not text.strip():
        raise ValueError("it is empty")
    tree = json.loads(text.decode())
    if not isinstance(tree, kind):
        raise ValueError(f"it is not a JSON {'object' if kind is dict else 'list'}")
    return tree


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree to a JSON file atomically, with each list of numbers on one line.

    Raises:
      ValueError: if a number is not finite, which JSON cannot represent.
      TypeError: if the type of a leaf is not supported by JSON.
    """
    text = json.dumps(tree, indent=2, allow_nan=False)
    # A string in JSON contains no line break, so that only lists match.
    text = re.sub(r"\[\n([-+.,\w\s]*)\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    replace_text(Path(path), text + "\n")


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


def append_row(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Appends a row of JSON atomically, even if other processes append at the same time.

    The line is a single write in append mode under a POSIX lock, which also works over NFS, where
    appending alone is not atomic. A line left incomplete by a killed process is terminated first.

    Raises:
      RunError: if the file cannot be written.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})") from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)  # released when the process ends
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if (written := os.write(descriptor, line)) < len(line):
            raise RunError(f"{path}: {written} of {len(line)} bytes written; is the disk full?")
        os.fsync(descriptor)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        os.close(descriptor)

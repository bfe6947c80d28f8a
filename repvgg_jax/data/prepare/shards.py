"""A data set that is being written: finished shards are kept if the process dies."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import write_json

_STATE = "progress.json"


class Draft:
    """The folder that a data set is written to before it gets its final name.

    `progress.json` has an entry for every finished shard. A shard is recorded only after it is
    closed and on the disk, so that an unfinished shard of a killed process is written again.

    Args:
      folder: folder to create; it is emptied if it has the draft of another data set.
      identity: JSON value that identifies the data set.
    """

    def __init__(self, folder: Path, identity: Any) -> None:
        self.folder = folder
        try:
            self._state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            self._state = {}
        if self._state.get("identity") != identity:
            shutil.rmtree(folder, ignore_errors=True)
            self._state = {"identity": identity, "verified": {}, "splits": {}}
        folder.mkdir(parents=True, exist_ok=True)
        # Files that a killed process had not renamed.
        for stray in [*folder.glob("*.part"), *folder.glob(f".{_STATE}.*.tmp")]:
            stray.unlink()
        self.save()

    @property
    def verified(self) -> dict[str, list[int]]:
        """Archives that were verified, for `archives.fetch`; call `save` after changes."""
        return self._state["verified"]

    def save(self) -> None:
        """Writes `progress.json`."""
        write_json(self.folder / _STATE, self._state)

    def lengths(self, split: str) -> list[int]:
        """Returns the number of records of each finished shard."""
        return self._state["splits"].get(split, {}).get("shard_lengths", [])

    def num_bytes(self, split: str) -> int:
        """Returns the bytes of the records in the finished shards."""
        return self._state["splits"].get(split, {}).get("num_bytes", 0)

    def write(self, split: str, read: Callable[[int], Iterator[bytes]], shard_bytes: int) -> None:
        """Writes the records of a split that are not in finished shards.

        `read(skip)` yields the records after the first `skip`. A shard is closed as soon as its
        records have `shard_bytes` bytes. A full disk raises OSError or RuntimeError.
        """
        empty = {"shard_lengths": [], "num_bytes": 0, "complete": False}
        state = self._state["splits"].setdefault(split, empty)
        if state["complete"]:
            return
        records = read(sum(state["shard_lengths"]))
        for first in records:
            path = self._path(split, len(state["shard_lengths"]))
            count, size = _write_shard(path, chain([first], records), shard_bytes)
            state["shard_lengths"].append(count)
            state["num_bytes"] += size
            self.save()
        state["complete"] = True
        self.save()

    def name_shards(self, split: str, pattern: str) -> None:
        """Renames the shards of a complete split; their names contain their number."""
        count = len(self.lengths(split))
        for index in range(count):
            path = self._path(split, index)
            if path.exists():  # otherwise it was renamed before the process died
                os.replace(path, self.folder / pattern.format(index=index, count=count))

    def finish(self, target: Path) -> None:
        """Renames the folder to its final name, by which it is complete."""
        os.rename(self.folder, target)
        (target / _STATE).unlink()

    def _path(self, split: str, index: int) -> Path:
        return self.folder / f"{split}-{index:05d}"


def _write_shard(path: Path, records: Iterator[bytes], shard_bytes: int) -> tuple[int, int]:
    """Writes one shard; returns its number of records and their bytes."""
    from array_record.python.array_record_module import ArrayRecordWriter

    draft = path.with_name(f"{path.name}.part")
    count = size = 0
    writer = ArrayRecordWriter(os.fspath(draft), "group_size:1")  # as TFDS writes them
    try:
        for record in records:
            writer.write(record)
            count += 1
            size += len(record)
            if size >= shard_bytes:
                break
    finally:
        writer.close()
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)
    return count, size


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file lock, which the system releases if the process dies.

    Raises:
      UsageError: if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is writing this data set (it holds {path})"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

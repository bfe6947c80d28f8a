"""Resumable writing of a data set: finished shards are kept if the process dies."""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from repvgg_jax.runtime.files import parse_json, write_json

_STATE = "progress.json"


class Draft:
    """The temporary folder of a data set that is being written.

    `progress.json` records the finished shards. A shard is recorded only after it is closed and
    synced to disk, so that an unfinished shard of a killed process is written again.

    Args:
      folder: folder to create; it is cleared if it contains another data set.
      identity: JSON value that identifies the data set.
    """

    def __init__(self, folder: Path, identity: Any) -> None:
        self.folder = folder
        try:
            self._state = parse_json((folder / _STATE).read_bytes())
        except (FileNotFoundError, ValueError):
            self._state = {}
        if self._state.get("identity") != identity:
            shutil.rmtree(folder, ignore_errors=True)
            self._state = {"identity": identity, "verified": {}, "splits": {}}
        folder.mkdir(parents=True, exist_ok=True)
        # Unfinished files of a killed process.
        for stray in [*folder.glob("*.part"), *folder.glob(f".{_STATE}.*.tmp")]:
            stray.unlink()
        self.save()

    @property
    def verified(self) -> dict[str, list[int]]:
        """Verified archives, for `archives.fetch`; call `save` after changes."""
        return self._state["verified"]

    def save(self) -> None:
        """Writes `progress.json`."""
        write_json(self.folder / _STATE, self._state)

    def lengths(self, split: str) -> list[int]:
        """Returns the number of records of each finished shard."""
        return self._state["splits"].get(split, {}).get("shard_lengths", [])

    def num_bytes(self, split: str) -> int:
        """Returns the total size of the records in the finished shards, in bytes."""
        return self._state["splits"].get(split, {}).get("num_bytes", 0)

    def write(self, split: str, read: Callable[[int], Iterator[bytes]], shard_bytes: int) -> None:
        """Writes the records of a split that are not in finished shards yet.

        `read(skip)` yields the records after the first `skip`. A shard is closed when its records
        reach `shard_bytes` bytes. A full disk raises OSError or RuntimeError.
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
        """Renames the shards of a complete split; the final names contain the number of shards."""
        count = len(self.lengths(split))
        for index in range(count):
            path = self._path(split, index)
            if path.exists():  # otherwise an earlier process renamed it
                os.replace(path, self.folder / pattern.format(index=index, count=count))

    def finish(self, target: Path) -> None:
        """Renames the folder to its final name, which marks it as complete."""
        os.rename(self.folder, target)
        (target / _STATE).unlink()

    def _path(self, split: str, index: int) -> Path:
        return self.folder / f"{split}-{index:05d}"


def _write_shard(path: Path, records: Iterator[bytes], shard_bytes: int) -> tuple[int, int]:
    """Writes one shard and returns the number of its records and their size in bytes."""
    from array_record.python.array_record_module import ArrayRecordWriter

    draft = path.with_name(f"{path.name}.part")
    count = size = 0
    writer = ArrayRecordWriter(os.fspath(draft), "group_size:1")  # as in TFDS
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

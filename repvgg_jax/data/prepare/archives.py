"""Archives that data sets are published in: found, or downloaded, and held against checksums."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from repvgg_jax.data.prepare.progress import ProgressMeter
from repvgg_jax.errors import UsageError

_CHUNK = 1 << 20  # bytes read at a time
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 3  # in a row without a byte


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
      file_name: the name that it is published under, and looked for.
      size: in bytes.
      checksum: "sha256:<hexadecimal>" or "md5:<hexadecimal>".
      url: where it is downloaded from; with `by_hand` the page that leads to it.
      by_hand: whether its publisher hands it out to registered users only.
    """

    file_name: str
    size: int
    checksum: str
    url: str
    by_hand: bool = False


def locate(
    archives: Sequence[Archive], downloads: Path, manual_dir: Path | None
) -> list[Path | None]:
    """Where archives lie: in `manual_dir` or in `downloads`; None for what is to be downloaded.

    Args:
      archives: what is wanted.
      downloads: the folder of what was downloaded before.
      manual_dir: the user's folder of archives; `<downloads>/manual`, as TFDS has it, if None.

    Raises:
      UsageError: a `manual_dir` that does not exist, and an archive that is missing and only
        handed out by its publisher.
    """
    if manual_dir is not None and not manual_dir.is_dir():
        raise UsageError(f"data.manual_dir={manual_dir}: no such folder")
    folders = (manual_dir or downloads / "manual", downloads)
    found = [
        next((p.resolve() for f in folders if (p := f / archive.file_name).is_file()), None)
        for archive in archives
    ]
    missing = [a for a, path in zip(archives, found, strict=True) if path is None and a.by_hand]
    if missing:
        raise UsageError(
            f"{' and '.join(archive.file_name for archive in missing)} not found in {folders[0]} "
            f"or {downloads}: register at {missing[0].url}, download what is missing, and name "
            "its folder with --config.data.manual_dir"
        )
    return found


def fetch(
    archives: Sequence[Archive],
    found: Sequence[Path | None],
    downloads: Path,
    verified: MutableMapping[str, list[int]],
) -> list[Path]:
    """The archives' paths, each verified, after downloading those that were not found.

    Args:
      archives: what is wanted.
      found: what `locate` gave.
      downloads: where to download to.
      verified: path -> [size, time of change in ns] of those whose checksum is known to hold,
        which are not read again; updated.

    Raises:
      UsageError: an archive that cannot be downloaded, is truncated, or not the published one.
      OSError: where nothing can be read or written.
    """
    paths = []
    for archive, path in zip(archives, found, strict=True):
        if path is None:
            path = download(archive, downloads)
        elif verified.get(os.fspath(path)) != _stamp(path):
            verify(path, archive)
        verified[os.fspath(path)] = _stamp(path)
        paths.append(path)
    return paths


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def verify(path: Path, archive: Archive, advice: str | None = None) -> None:
    """Read a file through.

    Raises:
      UsageError: where it has not the archive's size or not its checksum, ending in the advice.
    """
    size = path.stat().st_size
    advice = advice or f"remove it and get it anew from {archive.url}"
    if size != archive.size:
        fault = "is truncated" if size < archive.size else "is not the published archive"
        raise UsageError(f"{path} {fault}: {size:,} of {archive.size:,} bytes; {advice}")
    kind, _, expected = archive.checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, ProgressMeter(f"checking {path.name}", size, "B") as meter:
        while data := file.read(_CHUNK):
            digest.update(data)
            meter.add(len(data))
    if digest.hexdigest() != expected:
        raise UsageError(
            f"{path} is not the published archive: its {kind} is {digest.hexdigest()}, not "
            f"{expected}; {advice}"
        )


def download(archive: Archive, folder: Path, pause: float = 1.0) -> Path:
    """Download an archive into a folder, and verify it; goes on with what is there of it.

    Until it is verified it is called `<file name>.part`. Where a connection drops, the next one
    asks for the rest (HTTP Range), after `pause` seconds.

    Raises:
      UsageError: where the server doesn't answer or doesn't have it, where its checksum is wrong
        (the file is then removed), and where there is no room for it.
      OSError: where the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{archive.file_name}.part"
    if _size(draft) > archive.size:
        draft.unlink()
    check_space(folder, archive.size - _size(draft))
    failures = 0
    with ProgressMeter(
        f"downloading {archive.file_name}", archive.size, "B", _size(draft)
    ) as meter:
        while (start := _size(draft)) < archive.size:
            reason = _append(archive, draft, start, meter)
            failures = 0 if _size(draft) > start else failures + 1
            if failures == _ATTEMPTS:
                raise UsageError(
                    f"{archive.url} cannot be downloaded ({reason}): try again later, which goes "
                    f"on at byte {start:,}, or put {archive.file_name} into a folder and name it "
                    "with --config.data.manual_dir"
                )
            if reason:
                time.sleep(pause)
    try:
        verify(draft, archive, f"it came from {archive.url} and was removed: try again")
    except UsageError:
        draft.unlink()
        raise
    path = folder / archive.file_name
    os.replace(draft, path)
    return path.resolve()


def _append(archive: Archive, draft: Path, start: int, meter: ProgressMeter) -> str | None:
    """Append what the server sends from byte `start` on; why that was not all, or None."""
    with draft.open("ab") as file:
        try:
            for data in _bytes_from(archive.url, start):
                data = data[: archive.size - start]
                start += file.write(data)
                meter.add(len(data))
        except _DroppedError as error:
            return str(error)
    return None if start == archive.size else f"{start:,} of {archive.size:,} bytes were sent"


class _DroppedError(Exception):
    """The network's fault, unlike an OSError of the disk's."""


def _bytes_from(url: str, start: int) -> Iterator[bytes]:
    """The file at `url` without its first `start` bytes."""
    # No encoding of the transfer: its bytes would not be the file's.
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            if response.status != http.client.PARTIAL_CONTENT:  # a server that knows no Range
                _skip(response, start)
            while data := response.read(_CHUNK):
                yield data
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else None
        reason = reason or getattr(error, "reason", None) or error  # what URLError wraps
        raise _DroppedError(str(reason) or type(error).__name__) from error


def _skip(response: http.client.HTTPResponse, count: int) -> None:
    while count and (data := response.read(min(count, _CHUNK))):
        count -= len(data)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_space(folder: Path, needed: int) -> None:
    """Raises UsageError where a folder's disk has less room than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"no space left for {folder}: {needed / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} "
            "GB free; name another folder with --config.data.data_dir"
        )

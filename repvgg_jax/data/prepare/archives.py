"""Locating, downloading and verifying the archives of published data sets."""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from repvgg_jax.data.prepare.progress import progress
from repvgg_jax.errors import UsageError

_CHUNK = 1 << 20  # bytes per read
_TIMEOUT = 60.0  # seconds without data
_ATTEMPTS = 3  # consecutive attempts without data


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
      file_name: name of the file.
      size: size in bytes.
      checksum: "sha256:<hexadecimal>" or "md5:<hexadecimal>".
      url: URL of the file, or of its download page if `by_hand`.
      by_hand: whether the file must be downloaded manually, by registered users.
    """

    file_name: str
    size: int
    checksum: str
    url: str
    by_hand: bool = False


def locate(
    archives: Sequence[Archive], downloads: Path, manual_dir: Path | None
) -> list[Path | None]:
    """Returns the path of each archive in `manual_dir` or `downloads`; None if not found.

    The default of `manual_dir` is `<downloads>/manual`, as in TFDS.

    Raises:
      UsageError: if `manual_dir` does not exist, or an archive is missing that must be downloaded
        manually.
    """
    if manual_dir is not None and not manual_dir.is_dir():
        raise UsageError(f"data.manual_dir={manual_dir} does not exist")
    folders = (manual_dir or downloads / "manual", downloads)
    found = [
        next((p.resolve() for f in folders if (p := f / archive.file_name).is_file()), None)
        for archive in archives
    ]
    missing = [a for a, path in zip(archives, found, strict=True) if path is None and a.by_hand]
    if missing:
        names = " and ".join(archive.file_name for archive in missing)
        raise UsageError(
            f"{names} not found in {folders[0]} or {downloads}; register at {missing[0].url}, "
            "download the files, and set --config.data.manual_dir to their folder"
        )
    return found


def fetch(
    archives: Sequence[Archive],
    found: Sequence[Path | None],
    downloads: Path,
    verified: MutableMapping[str, list[int]],
) -> list[Path]:
    """Downloads the archives that `locate` did not find, verifies all, and returns their paths.

    `verified` maps the path of each verified archive to [size, modification time in ns]. Archives
    in it are not verified again unless they have changed. It is updated in place.

    Raises:
      UsageError: if an archive cannot be downloaded, or a file differs from the published one.
      OSError: if a file cannot be read or written.
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
    """Raises UsageError, with `advice`, if a file's size or checksum differs from the archive's."""
    size = path.stat().st_size
    advice = advice or f"delete it and download it again from {archive.url}"
    if size != archive.size:
        fault = "is truncated" if size < archive.size else "is not the published archive"
        raise UsageError(f"{path} {fault}: {size:,} bytes instead of {archive.size:,}; {advice}")
    kind, _, expected = archive.checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, progress(f"checking {path.name}", size, "B") as add:
        while data := file.read(_CHUNK):
            digest.update(data)
            add(len(data))
    found = digest.hexdigest()
    if found != expected:
        raise UsageError(
            f"{path} is not the published archive: its {kind} is {found}, not {expected}; {advice}"
        )


def download(archive: Archive, folder: Path, pause: float = 1.0) -> Path:
    """Downloads an archive into a folder and verifies it, resuming an earlier download.

    Until it is verified, the file is named `<file name>.part`. A lost connection is resumed (HTTP
    Range) after `pause` seconds; the third consecutive attempt without progress is an error.

    Raises:
      UsageError: if the server does not respond or does not have the file, the checksum is wrong
        (the file is then removed), or the disk is too small.
      OSError: if the folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{archive.file_name}.part"
    if _size(draft) > archive.size:
        draft.unlink()
    check_space(folder, archive.size - _size(draft))
    failures = 0
    work = f"downloading {archive.file_name}"
    with progress(work, archive.size, "B", _size(draft)) as add:
        while (start := _size(draft)) < archive.size:
            failure = _append(archive, draft, start, add)
            failures = 0 if _size(draft) > start else failures + 1
            if failures == _ATTEMPTS:
                raise UsageError(
                    f"{archive.url} cannot be downloaded ({failure}); try again later to resume at "
                    f"byte {start:,}, or put {archive.file_name} into a folder and set "
                    "--config.data.manual_dir to that folder"
                )
            if failure:
                time.sleep(pause)
    try:
        verify(draft, archive, f"the file from {archive.url} was removed; try again")
    except UsageError:
        draft.unlink()
        raise
    path = folder / archive.file_name
    os.replace(draft, path)
    return path.resolve()


def _append(archive: Archive, draft: Path, start: int, add: Callable[[int], object]) -> str | None:
    """Appends the file from byte `start` on; returns an error message if it is incomplete."""
    with draft.open("ab") as file:
        try:
            for data in _bytes_from(archive.url, start):
                data = data[: archive.size - start]
                start += file.write(data)
                add(len(data))
        except _DroppedError as error:
            return str(error)
    return None if start == archive.size else f"{start:,} of {archive.size:,} bytes were sent"


class _DroppedError(Exception):
    """A network error, as opposed to an OSError of the disk."""


def _bytes_from(url: str, start: int) -> Iterator[bytes]:
    """Yields the file at `url` without its first `start` bytes."""
    # The server must not compress the file, since ranges count bytes of the original.
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            # A server that does not support Range sends the whole file.
            rest = 0 if response.status == http.client.PARTIAL_CONTENT else start
            while rest and (data := response.read(min(rest, _CHUNK))):
                rest -= len(data)
            while data := response.read(_CHUNK):
                yield data
    except (OSError, http.client.HTTPException) as error:
        cause = error
        if not isinstance(error, urllib.error.HTTPError):
            cause = getattr(error, "reason", None) or error  # the error wrapped by URLError
        raise _DroppedError(str(cause) or type(error).__name__) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_space(folder: Path, needed: int) -> None:
    """Raises UsageError if the disk of a folder has less than `needed` free bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"no space left for {folder}: needs {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB free; "
            "set --config.data.data_dir to another folder"
        )

"""A lock on a workdir, which the operating system releases when its process ends."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path

from absl import logging

from repvgg_jax.errors import HeldError, RunError

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)
_PATIENCE = 2.0  # seconds; `lock_holder` in another process takes the lock for a moment

_held: set[Path] = set()  # lock files of this process, or of process 0 of its run


@contextmanager
def locked(workdir: Path, take: bool = True, name: str = LOCK_FILE) -> Iterator[None]:
    """Locks a workdir for the duration of the context, or until the process ends in any way.

    The lock is a POSIX record lock on `<workdir>/lock`. NFS, Lustre (mounted with `flock`) and
    other file systems with POSIX locks share it between hosts. A nested call in the same process
    does nothing, since closing the file a second time would release the lock. If the file system
    does not support locks, logs a warning, once for each workdir.

    Args:
      workdir: existing folder of a run.
      take: False if process 0 of this process's run takes the lock.
      name: name of the lock file.

    Raises:
      HeldError: if another process has the lock; the message has its ID, host and start time.
      RunError: if the lock file cannot be used.
    """
    path = workdir.resolve() / name
    if path in _held:
        yield
        return
    with _taken(path, workdir) if take else nullcontext():
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


@contextmanager
def _taken(path: Path, workdir: Path) -> Iterator[None]:
    try:
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})") from None
    with file:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(file.fileno(), fcntl.LOCK_EX, workdir):
            if time.monotonic() > deadline:
                file.seek(0)
                raise HeldError(f"{workdir} is locked by {_holder(file.read())}")
            time.sleep(0.05)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with suppress(OSError):  # a full disk, of which the first file of the run tells more
            file.truncate(0)
            file.write(json.dumps(holder).encode())
        yield


def lock_holder(workdir: Path) -> str | None:
    """Returns a description of the other process that has locked a workdir, or None."""
    path = workdir.resolve() / LOCK_FILE
    if path in _held:
        return None
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from None
    with file:
        if _try_lock(file.fileno(), fcntl.LOCK_SH, workdir):
            return None
        return _holder(file.read())


def check_unlocked(workdir: Path) -> None:
    """Raises HeldError if another process has locked a workdir."""
    if holder := lock_holder(workdir):
        raise HeldError(f"{workdir} is locked by {holder}")


def _try_lock(descriptor: int, kind: int, workdir: Path) -> bool:
    """Takes the lock; returns True if it was free or the file system does not support locks."""
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"{workdir} cannot be locked ({error.strerror})") from None
        _warn_of_no_locks(workdir, error.strerror)
    return True


@cache
def _warn_of_no_locks(workdir: Path, reason: str) -> None:
    logging.warning(
        "%s cannot be locked (%s): its file system does not support locks; make sure that no other "
        "process uses this workdir",
        workdir,
        reason,
    )


def _holder(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # the holder has not written the file yet
        return "another process, which has just started"

"""Workdirs of runs: the lock, the state of a run, and the error of a failed one."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.sweeps.expand import Run
from experiments.sweeps.jobs import HELD
from experiments.sweeps.rows import is_finished
from repvgg_jax.config.fields import to_json
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.runtime.files import replace_text, write_json

LOCK_FILE = "lock"
ERROR_FILE = "error.txt"  # of a failed run
LOG_FILE = "log.txt"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_PATIENCE = 2.0  # seconds; a process that reads the state holds the lock for a moment

STATES = ("done", "running", "interrupted", "failed", "new")


class HeldError(RunError):
    """Another process has locked the run."""

    exit_code = HELD


def make(run: Run, root: Path) -> Path:
    """Creates the run's workdir with its config, by which `train` recognizes it."""
    workdir = run.workdir(root)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            write_json(workdir / "config.json", to_json(run.config()))
    except OSError as error:
        raise RunError(f"{workdir} cannot be written ({error.strerror})") from None
    return workdir


def workdir_of(command: Sequence[str]) -> Path:
    """Returns the value of `--workdir` in a job's command."""
    flag = "--workdir="
    return Path(next(word for word in command if word.startswith(flag)).removeprefix(flag))


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks the workdir; the system releases the lock when this process ends, however it ends.

    The body must not open the lock file, since closing it would release the lock.

    Raises:
      HeldError: if another process has the lock; the message gives its id, host and start.
    """
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                raise HeldError(f"{workdir} is locked by {_holder(file.read())}")
            time.sleep(0.05)
        file.truncate(0)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
        file.flush()
        yield


def _try_lock(descriptor: int, kind: int) -> bool:
    """Tries to acquire a lock, and returns True on success."""
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"a workdir cannot be locked ({error.strerror})") from None
        raise UsageError(
            f"a workdir cannot be locked ({error.strerror}), and two processes could train the "
            "same run; use --workdirs on a file system with file locks"
        ) from None
    return True


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has not written the file yet
        return "another process, which has just started"


def lock_holder(workdir: Path) -> str | None:
    """Returns the process that has the lock, or None. That process must not call this function."""
    path = workdir / LOCK_FILE
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        return None if _try_lock(file.fileno(), fcntl.LOCK_SH) else _holder(file.read())


def state(run: Run, root: Path, recorded: set[str]) -> str:
    """Returns one of `STATES`; `recorded` holds the hashes that have a row."""
    workdir = run.workdir(root)
    if run.config_hash in recorded:
        return "done"
    if lock_holder(workdir):
        return "running"
    if is_finished(run, workdir):
        return "done"
    if (workdir / ERROR_FILE).exists():
        return "failed"
    started = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    return "interrupted" if started else "new"


def last_error(folder: Path) -> str:
    """Returns the last line of a failed run's error, or else of its output, or an empty string."""
    for name in (ERROR_FILE, LOG_FILE):
        path = folder / name
        if path.exists() and (lines := path.read_text(errors="replace").strip().splitlines()):
            return lines[-1]
    return ""


def clear_error(folder: Path) -> None:
    """Deletes the error of an earlier process, before another one starts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).unlink(missing_ok=True)


def write_error(folder: Path, line: str) -> None:
    """Stores one line for `last_error`, if the folder can be written."""
    with suppress(OSError):  # the disk may be full
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / ERROR_FILE, line + "\n")


def record_failure(folder: Path, code: int) -> str:
    """Returns an error message for a failed process and stores it in the workdir.

    A run thus counts as failed even if it was killed or failed before it could write an error. The
    exit code is negative after a signal, as in Popen.
    """
    if code >= 0:
        line = last_error(folder) or f"exit code {code}"
    else:
        line = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            line += " (out of memory?)"
    write_error(folder, line)
    return line

"""A run's workdir: who trains there, and how far it is."""

from __future__ import annotations

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
from experiments.sweeps.rows import finished
from repvgg_jax.config.fields import plain
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.runtime.files import replace_text, write_json

LOCK_FILE = "lock"
ERROR_FILE = "error.txt"  # of a failed run: its last words
LOG_FILE = "log.txt"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_PATIENCE = 2.0  # seconds, as someone who looks at the state holds the lock for a moment

STATES = ("done", "running", "interrupted", "failed", "new")


class HeldError(RunError):
    """Another process has the run."""

    exit_code = HELD


def make(run: Run, root: Path) -> Path:
    """The run's workdir, with the config that tells `train` that it is a run's."""
    workdir = run.workdir(root)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            write_json(workdir / "config.json", plain(run.config()))
    except OSError as error:
        raise RunError(f"{workdir} cannot be written to ({error.strerror})") from None
    return workdir


def of_command(command: Sequence[str]) -> Path:
    """Where the run of a job's command trains."""
    flag = "--workdir="
    return Path(next(word for word in command if word.startswith(flag)).removeprefix(flag))


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the workdir; the lock is the system's, and ends with this process however that ends.

    Within, nothing of this process may open the lock's file: closing it would let go of the lock.

    Raises:
      HeldError: where another process holds it, saying which, where and since when.
    """
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        until = time.monotonic() + _PATIENCE
        while not _try(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > until:
                file.seek(0)
                raise HeldError(f"{workdir} is held by {_who(file.read())}")
            time.sleep(0.05)
        file.truncate(0)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
        file.flush()
        yield


def _try(descriptor: int, kind: int) -> bool:
    """Raises UsageError on a file system that has no locks, RunError where one fails now."""
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"a file of the workdirs cannot be locked ({error.strerror})") from None
        raise UsageError(
            f"a file of the workdirs cannot be locked ({error.strerror}), and nothing else keeps "
            "two processes from training one run; take --workdirs on another file system"
        ) from None
    return True


def _who(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock, and has not said so yet
        return "another process, which has just started"


def held_by(workdir: Path) -> str | None:
    """Who trains there; None where nobody does. Not for the process that holds the lock."""
    path = workdir / LOCK_FILE
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        return None if _try(file.fileno(), fcntl.LOCK_SH) else _who(file.read())


def state(run: Run, root: Path, recorded: set[str]) -> str:
    """One of `STATES`; `recorded` holds the hashes that have a row."""
    workdir = run.workdir(root)
    if run.config_hash in recorded:
        return "done"
    if held_by(workdir):
        return "running"
    if finished(run, workdir):
        return "done"
    if (workdir / ERROR_FILE).exists():
        return "failed"
    begun = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    return "interrupted" if begun else "new"


def last_words(folder: Path) -> str:
    """The last line of a failed run's error, or else of its output; empty where it said nothing."""
    for name in (ERROR_FILE, LOG_FILE):
        path = folder / name
        if path.exists() and (lines := path.read_text(errors="replace").strip().splitlines()):
            return lines[-1]
    return ""


def forget_last_words(folder: Path) -> None:
    """Of an earlier process, before another starts.

    Raises:
      OSError: where the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).unlink(missing_ok=True)


def leave_last_words(folder: Path, words: str) -> None:
    """One line for `last_words`, where it can be written."""
    with suppress(OSError):  # it may be the disk that is full
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / ERROR_FILE, words + "\n")


def keep_last_words(folder: Path, code: int) -> str:
    """What a failed process died of, by its exit code as Popen has it; for the workdir, too.

    So a run that was killed, or died too early to say anything there, has failed all the same.
    """
    if code < 0:
        hint = " (out of memory?)" * (-code == signal.SIGKILL)
        words = f"killed by {signal.Signals(-code).name}{hint}"
    else:
        words = last_words(folder) or f"exit code {code}"
    leave_last_words(folder, words)
    return words

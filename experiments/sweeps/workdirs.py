"""Workdirs of runs: the state of a run, the error of a failed one, and the last launch."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiments.sweeps.expand import Run
from experiments.sweeps.flags import writing
from experiments.sweeps.rows import is_finished
from repvgg_jax.config.fields import to_json
from repvgg_jax.runtime.files import read_json, replace_text, write_json
from repvgg_jax.runtime.lock import lock_holder

ERROR_FILE = "error.txt"  # of a failed run
LOG_FILE = "log.txt"

STATES = ("done", "running", "interrupted", "failed", "new")


def make(run: Run, root: Path) -> Path:
    """Creates the run's workdir with its config, by which `train` recognizes it."""
    workdir = run.workdir(root)
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            write_json(workdir / "config.json", to_json(run.config()))
    return workdir


def remember_launch(root: Path, sweep: str, flags: Sequence[str]) -> None:
    """Stores the flags that select a sweep's runs, which `last_launch` returns."""
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / f"{sweep}.json", {"flags": list(flags)})


def last_launch(root: Path, sweep: str) -> list[str] | None:
    """Returns the flags of a sweep's last launch into these workdirs; None if there was none."""
    path = root / f"{sweep}.json"
    return read_json(path, "delete it")["flags"] if path.exists() else None


def workdir_of(command: Sequence[str]) -> Path:
    """Returns the value of `--workdir` in a job's command."""
    flag = "--workdir="
    return Path(next(word for word in command if word.startswith(flag)).removeprefix(flag))


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

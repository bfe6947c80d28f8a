"""Runs parts as processes, and yields their rows as they come and the cause of a failure."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def rows_of(
    command: Sequence[str], environment: Mapping[str, str], log: Path, seconds: float
) -> Iterator[dict[str, Any]]:
    """Runs a Python command, and yields the rows that it writes to stdout, as they come.

    If it fails or needs too long, the last row has `error`. Its processes end with this generator.

    Args:
      command: arguments of Python.
      environment: environment variables that differ from this process's.
      log: file for stderr.
      seconds: time after which it is killed.
    """
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # a group, since PyTorch compiles in processes of its own
        )
    deadline = time.monotonic() + seconds
    timer = threading.Timer(seconds, _kill, [process])
    timer.start()
    try:
        for line in process.stdout or ():
            if line.endswith("\n"):  # otherwise, it was killed meanwhile
                yield json.loads(line)
        # All processes of the group have closed the pipe, but this one may still be running.
        code = process.wait()
        if time.monotonic() >= deadline:
            yield {"error": "stopped, the time is up"}
        elif code:
            end = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            yield {"error": f"ended by {end}, see {log}"}
    finally:
        timer.cancel()
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen) -> None:
    """Kills a process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

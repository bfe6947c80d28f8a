"""Stopping all processes of a run after the same step, and ending a process at Ctrl-C."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from repvgg_jax.errors import Stopped
from repvgg_jax.runtime.mesh import shard_batch

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MAX_RESERVE = 60.0  # seconds reserved for writing the last checkpoint

_active: list["Stopping"] = []  # entered contexts, the innermost last
_leaving = False  # True after `leave_at_interrupt`


class Stopping:
    """A context manager that raises `Stopped` between steps after a signal or at a deadline.

    Inside the `with` statement, it handles SIGTERM, which schedulers send some seconds before they
    kill a process, and SIGINT. A second SIGINT raises KeyboardInterrupt, or ends the process after
    `leave_at_interrupt`. Signals that were ignored before, such as SIGINT in background jobs of a
    shell, stay ignored.

    Args:
      deadline: seconds from now until the run must have written all files; None for no limit. The
        run stops earlier by a tenth of this, at most a minute, plus the longest step's duration.
    """

    def __init__(self, deadline: float | None = None):
        self._started = time.monotonic()
        self._checked: float | None = None
        self._deadline = deadline
        self._longest = 0.0
        self._steps = 0
        self._reason: str | None = None
        self._interrupted = False
        self._former: dict[int, Any] = {}
        self._announced = False  # by the thread of `leave_at_interrupt`
        self._vote: Any = None  # result of the last call: nonzero if a process wants to stop

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._on_signal)
            _active.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        if self in _active:
            _active.remove(self)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted and not _leaving:
                raise KeyboardInterrupt
            self._interrupted = True
        self._reason = self._reason or signal.Signals(number).name

    def announce(self) -> bool:
        """Says that the run will stop; returns False if it was said before."""
        if self._announced:
            return False
        self._announced = True
        line = "stopping after the current step; Ctrl-C again ends the run at once, without saving"
        with suppress(OSError):  # the reader of stderr may have left
            print(f"\n{line}", file=sys.stderr, flush=True)
        return True

    def check(self, mesh: Mesh | None = None) -> None:
        """Raises Stopped if the run should stop; call it after each step or evaluation batch.

        In a multi-process run, all processes must call this equally often, with the mesh of the
        run. They stop together at the call after a process wanted to stop, so that no call waits
        for communication.
        """
        now = time.monotonic()
        if self._checked is not None:  # the time before the first call is not a step
            self._add_step(now - self._checked)
        self._checked = now
        if self._deadline is not None and self._reason is None:
            reserve = min(self._deadline / 10, _MAX_RESERVE) + self._longest
            if now - self._started + reserve >= self._deadline:
                self._reason = f"the deadline of {self._deadline:g} s"
        if jax.process_count() == 1 or mesh is None:
            if self._reason is not None:
                raise Stopped(self._reason)
        elif self._all_agree(mesh):
            raise Stopped(self._reason or "another process")

    def _add_step(self, seconds: float) -> None:
        """Records a step's duration; the second replaces the first, which may include compiling."""
        self._longest = seconds if self._steps <= 1 else max(self._longest, seconds)
        self._steps += 1

    def _all_agree(self, mesh: Mesh) -> bool:
        """Returns True in all processes if any process wanted to stop at the previous call."""
        wanted = np.full(len(mesh.local_devices), self._reason is not None, np.int32)
        former = self._vote
        self._vote = _any(shard_batch({"stop": wanted}, mesh)["stop"])
        return former is not None and bool(jax.device_get(former))


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return flags.max()


def leave_at_interrupt(line: Callable[[], str]) -> None:
    """Makes Ctrl-C end this process at once, with one line and exit code 130.

    A KeyboardInterrupt would wait for the end of a compilation, and threads and destructors that it
    reaches would print its traceback. Inside a `Stopping`, the first Ctrl-C only requests a stop,
    and the second ends the process. Interactive sessions, which would be lost, and processes that
    ignore or handle SIGINT in another way are left as they are.

    Args:
      line: function that returns the last line on stderr, called at the interrupt.
    """
    global _leaving
    default = signal.default_int_handler, signal.SIG_DFL
    if hasattr(sys, "ps1") or signal.getsignal(signal.SIGINT) not in default:
        return
    _leaving = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python's own handlers run in the main thread, once it returns from a compilation.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] != signal.SIGINT or (_active and _active[-1].announce()):
                continue
            try:
                print(f"\n{line()}", file=sys.stderr, flush=True)
            finally:  # even if that failed
                os._exit(130)

    threading.Thread(target=watch, name="interrupts", daemon=True).start()

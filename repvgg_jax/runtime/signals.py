"""Stopping on signals and at a deadline, after the same step in all processes of a run."""

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from repvgg_jax.errors import Stopped
from repvgg_jax.runtime.mesh import shard_batch

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MAX_RESERVE = 60.0  # seconds kept for the last checkpoint


class Stopping:
    """Turns SIGTERM, a first SIGINT and a deadline into `Stopped`, raised between two steps.

    Signals are caught inside a `with` statement. Schedulers send SIGTERM some seconds before they
    kill; a second SIGINT quits at once. Signals that are ignored, as shells do for background jobs,
    stay ignored.

    Args:
      deadline: seconds from now by which everything must be written; None for no limit. A tenth of
        it, at most a minute, and the duration of the longest step so far are kept in reserve.
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
        self._vote: Any = None  # of the last call: nonzero if some process wants to stop

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self._reason = self._reason or signal.Signals(number).name

    def check(self, mesh: Mesh | None = None) -> None:
        """Raises Stopped if it is time to stop; called once for each step or evaluation batch.

        Several processes must all call this equally often, with the mesh of the run. They stop
        together, one call after the first of them wanted to, so that none waits for an answer.
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
        """Records a step's duration; the first, which compiles, counts until there is another."""
        self._longest = seconds if self._steps <= 1 else max(self._longest, seconds)
        self._steps += 1

    def _all_agree(self, mesh: Mesh) -> bool:
        """Returns True, on all processes alike, if any wanted to stop at the previous call."""
        wanted = np.full(len(mesh.local_devices), self._reason is not None, np.int32)
        former = self._vote
        self._vote = _any(shard_batch({"stop": wanted}, mesh)["stop"])
        return former is not None and bool(jax.device_get(former))


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return flags.max()

"""Reading metrics without making the device wait; stopping where they are not finite."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import jax
import optax
import orbax.checkpoint as ocp

from repvgg_jax.errors import RunError
from repvgg_jax.training.monitor import Monitor

Metrics = dict[str, Any]


class Watch:
    """Reads a step's metrics after the next step is dispatched, so the host never holds it up."""

    def __init__(
        self,
        monitor: Monitor,
        schedule: optax.Schedule,
        log_every: int,
        last_step: int,
        manager: ocp.CheckpointManager,
    ):
        self.monitor, self.schedule, self.manager = monitor, schedule, manager
        self.log_every, self.last_step = log_every, last_step
        self._pending: tuple[int, Metrics] | None = None

    def push(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step just dispatched; read those of the one before."""
        previous, self._pending = self._pending, (step, metrics)
        if previous:
            self._read(*previous)

    def flush(self) -> None:
        """Wait for and read what was pushed last."""
        if self._pending:
            previous, self._pending = self._pending, None
            self._read(*previous)

    def _read(self, step: int, metrics: Metrics) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(map(math.isfinite, (values["loss"], values["grad_norm"]))):
            self.stop(step, f"loss {values['loss']}, gradient norm {values['grad_norm']}")
        if step % self.log_every == 0 or step == self.last_step:
            # Of this step alone: a mean since the last line would differ in a resumed run.
            self.monitor.train(step, values | {"learning_rate": float(self.schedule(step - 1))})

    def stop(self, step: int, found: str) -> NoReturn:
        """Raises RunError for a step whose loss or gradient is not finite.

        The checkpoint of the step before holds the parameters that gave it, and goes: from it the
        run would only come here again.
        """
        self.manager.wait_until_finished()
        for other in self.manager.all_steps():
            if other >= max(step - 1, 1):  # 0 is an imported one, which no step has made
                self.manager.delete(other)
        good = self.manager.latest_step()
        where = f"{self.manager.directory}/{good}" if good is not None else "none was written yet"
        raise RunError(
            f"step {step}: {found} at learning rate {float(self.schedule(step - 1)):.4g}; "
            f"last good checkpoint: {where}"
        )

"""Reads metrics without blocking the device, and stops a run if they are not finite."""

import math
from typing import NoReturn

import jax
import orbax.checkpoint as ocp

from repvgg_jax.config.build import Experiment
from repvgg_jax.errors import RunError
from repvgg_jax.training.evaluation import Metrics
from repvgg_jax.training.monitor import Monitor


class NanGuard:
    """A reader that checks each step's metrics for NaNs once the next step is dispatched.

    The monitor gets the metrics of every `log_every`-th step and of the last one.
    """

    def __init__(self, experiment: Experiment, monitor: Monitor, manager: ocp.CheckpointManager):
        self._experiment = experiment
        self._monitor = monitor
        self._manager = manager
        self._pending: tuple[int, Metrics] | None = None

    def push(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step just dispatched, and reads those of the step before."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Waits for the metrics that were pushed last, and reads them."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self.stop(step, f"loss {values['loss']}, gradient norm {values['grad_norm']}")
        if step % self._experiment.log_every == 0 or step == self._experiment.steps:
            # Not a mean since the last row, which would differ in a resumed run.
            self._monitor.train(step, values | {"learning_rate": self._learning_rate(step)})
        else:
            self._monitor.between(step, values["loss"])

    def _learning_rate(self, step: int) -> float:
        return float(self._experiment.schedule(step - 1))

    def stop(self, step: int, problem: str) -> NoReturn:
        """Raises RunError for a step whose loss or gradient is not finite.

        The checkpoint of the previous step is deleted, since a run resumed from it would fail
        again.
        """
        self._manager.wait_until_finished()
        for other in self._manager.all_steps():
            if other >= max(step - 1, 1):  # step 0 has imported weights
                self._manager.delete(other)
        good = self._manager.latest_step()
        where = f"{self._manager.directory}/{good}" if good is not None else "none was written yet"
        raise RunError(
            f"step {step}: {problem} at learning rate {self._learning_rate(step):.4g}; "
            f"last good checkpoint: {where}; the usual remedy is a lower optim.learning_rate, a "
            "longer optim.warmup_epochs, or optim.clip_norm"
        )

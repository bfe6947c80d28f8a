"""Reads metrics without blocking the device, and stops a run if they are not finite."""

import math
from typing import NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from repvgg_jax.config.build import Experiment
from repvgg_jax.errors import RunError
from repvgg_jax.training.evaluation import Metrics
from repvgg_jax.training.monitor import Monitor


class NanGuard:
    """A reader that checks the metrics of each step for NaNs once the next call is dispatched.

    The monitor gets the metrics of every `log_every`-th step and of the last one.
    """

    def __init__(self, experiment: Experiment, monitor: Monitor, manager: ocp.CheckpointManager):
        self._experiment = experiment
        self._monitor = monitor
        self._manager = manager
        self._pending: tuple[int, int, Metrics] | None = None

    def push(self, step: int, count: int, metrics: Metrics) -> None:
        """Takes the metrics of a call just dispatched, and reads those of the call before.

        Args:
          step: last step of the call.
          count: number of steps that the call took.
          metrics: the metrics of these steps: numbers, or arrays whose first `count` elements are
            those of the steps.
        """
        self.flush()
        self._pending = step, count, metrics

    def flush_if_ready(self) -> None:
        """Reads the metrics that were pushed last, if this does not have to wait.

        On a CPU, where a call returns only when it has finished, the metrics are thus recorded
        before the next call, not after it.
        """
        if self._pending and all(leaf.is_ready() for leaf in jax.tree.leaves(self._pending[2])):
            self.flush()

    def flush(self) -> None:
        """Waits for the metrics that were pushed last, and reads them."""
        if self._pending is None:
            return
        last, count, metrics = self._pending
        self._pending = None
        arrays = {name: np.atleast_1d(leaf) for name, leaf in jax.device_get(metrics).items()}
        for row in range(count):
            values = {name: float(leaf[row]) for name, leaf in arrays.items()}
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                problem = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
                self.stop(last - count + 1 + row, problem)
        # These are the values of the last step. A mean since the last row would differ in a resumed
        # run.
        if last % self._experiment.log_every == 0 or last == self._experiment.steps:
            self._monitor.train(last, values | {"learning_rate": self._learning_rate(last)})
        else:
            self._monitor.between(last, values["loss"])

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

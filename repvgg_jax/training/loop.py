"""The steps of a run, and what happens between them: metrics, evaluation, checkpoints, stopping."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from jax import Array
from jax.sharding import Mesh

from repvgg_jax.checkpoint import manager as manager_module
from repvgg_jax.errors import Stopped
from repvgg_jax.runtime.compilation import StartupTimer
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training.evaluation import Batch, Evaluation, Metrics
from repvgg_jax.training.monitor import Monitor
from repvgg_jax.training.nan_guard import Watch
from repvgg_jax.training.prefetch import Feed
from repvgg_jax.training.step import TrainState

StepFn = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


@dataclasses.dataclass
class Loop:
    """What a run needs from its first step to its last.

    Attributes:
      step_fn: the compiled training step.
      key: that it gets at every step.
      seed: of the order of the data, for the checkpoints' position.
      steps: the last step.
      eval_every, checkpoint_every: steps; the last one is evaluated too, and what is evaluated is
        saved.
      startup: stopwatch that the first step stops.
      mesh, feed, evaluation, monitor, manager, watch, stopping: that the run uses.
    """

    step_fn: StepFn
    key: Array
    seed: int
    steps: int
    eval_every: int
    checkpoint_every: int
    mesh: Mesh
    feed: Feed
    evaluation: Evaluation
    monitor: Monitor
    manager: ocp.CheckpointManager
    watch: Watch
    startup: StartupTimer
    stopping: Stopping

    def __post_init__(self) -> None:
        self._saved: int | None = None
        self._seconds = 0.0  # of training, without the first step, which compiles, and evaluations

    @property
    def waiting(self) -> float | None:
        """The share of training time that was spent waiting for data; None after a step or none."""
        return self.feed.waited / self._seconds if self._seconds else None

    def run(self, state: TrainState, evaluated: bool) -> tuple[TrainState, Metrics | None]:
        """Train on from a state.

        Args:
          state: a fresh or a restored one.
          evaluated: whether that state was evaluated before it was saved, if it was to be.

        Returns:
          the last state, and what its evaluation gave; None where nothing was left to do.

        Raises:
          Stopped: where it is time to; the state is saved.
          RunError: where something is not finite, or cannot be saved.
        """
        start, result, began = int(state.step), None, 0.0
        self._saved = start
        try:
            if start and not evaluated and self._evaluates(start):
                result = self._evaluate(start, state)  # a stop came in the middle of it
            for step in range(start + 1, self.steps + 1):
                self.stopping.check(self.mesh)
                manager_module.check_saved(self.manager)
                state, metrics = self.step_fn(state, next(self.feed), self.key)
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    self.startup.stop()
                    self.monitor.started(self.startup.seconds, self.startup.compile_seconds)
                self.watch.push(step, metrics)
                self._seconds += time.monotonic() - began if began else 0.0
                result = self._evaluate(step, state) if self._evaluates(step) else None
                if result or step % self.checkpoint_every == 0:
                    self._save(step, state, result)
                began = time.monotonic()
        except Stopped as stop:
            step = int(state.step)
            self.watch.flush()
            if step > self._saved:
                self._save(step, state, None)
            manager_module.check_saved(self.manager, wait=True)
            if step == 0:
                raise Stopped(
                    f"stopped by {stop} before the first of {self.steps} steps, with nothing to "
                    "save; the same command starts anew"
                ) from None
            raise Stopped(
                f"stopped by {stop} after step {step} of {self.steps}, which is saved; "
                "the same command goes on from there"
            ) from None
        manager_module.check_saved(self.manager, wait=True)
        return state, result

    def _evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.steps

    def _evaluate(self, step: int, state: TrainState) -> Metrics:
        self.watch.flush()
        result = self.evaluation(state.net, state.variables, lambda: self.stopping.check(self.mesh))
        self.monitor.evaluate(step, result)
        if not math.isfinite(result["loss"]):
            self.watch.stop(step + 1, f"evaluation loss {result['loss']}")
        return result

    def _save(self, step: int, state: TrainState, result: Metrics | None) -> None:
        self.watch.flush()  # a step that was not finite is not worth keeping
        position = {"seed": self.seed, "step": step}
        manager_module.save(self.manager, state.variables, state.optimizer, position, result)
        self._saved = step

"""The training loop: steps, metrics, evaluations, checkpoints and stop requests."""

import math
import time
from dataclasses import dataclass, field
from typing import NoReturn

import jax
import orbax.checkpoint as ocp

from repvgg_jax.checkpoint.manager import check_saved, save
from repvgg_jax.config.build import Experiment
from repvgg_jax.errors import Stopped
from repvgg_jax.runtime.compilation import FIRST_STEP, StartupTimer, temporaries_bytes
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training.evaluation import Evaluation, Metrics, scalars
from repvgg_jax.training.monitor import Monitor
from repvgg_jax.training.nan_guard import NanGuard
from repvgg_jax.training.state import TrainState
from repvgg_jax.training.steps import ResidentSteps, StreamedSteps


@dataclass
class Loop:
    """The training loop of an experiment, up to its last step.

    Attributes:
      steps: the remaining steps; None if there are none.
      waiting: share of the training time spent waiting for data; None before the second step.
      temporaries_bytes: temporary memory of the compiled step; None before the first, or unknown.
    """

    experiment: Experiment
    steps: StreamedSteps | ResidentSteps | None
    evaluation: Evaluation
    monitor: Monitor
    manager: ocp.CheckpointManager
    stopping: Stopping
    startup: StartupTimer
    waiting: float | None = field(default=None, init=False)
    temporaries_bytes: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._guard = NanGuard(self.experiment, self.monitor, self.manager)

    def run(self, state: TrainState, evaluated: bool) -> tuple[TrainState, Metrics | None]:
        """Runs the remaining steps; returns the last state, and its metrics if it was evaluated.

        The state is evaluated every `eval_every` steps and after the last one, and saved after each
        evaluation and every `checkpoint_every` steps. If an evaluation of the given state is due
        and `evaluated` is False, it is run first.

        Raises:
          Stopped: if a stop was requested; the state is saved.
          RunError: if a loss or gradient is not finite, or a checkpoint cannot be written.
        """
        experiment = self.experiment
        mesh, steps = experiment.mesh, self.steps
        step = saved = start = int(state.step)
        seconds = 0.0  # training time without the first step, evaluations and checkpoints
        result = None
        try:
            if start and self._evaluation_due(start) and not evaluated:
                result = self._evaluate(start, state)
            while steps is not None and step < experiment.steps:
                began = time.monotonic()
                self.stopping.check(mesh)
                check_saved(self.manager)
                self._guard.flush_if_ready()
                count = min(steps.per_call, self._end_of_call(step) - step)
                state, metrics = steps.take(state, step, count)
                first = step == start
                if first:
                    jax.block_until_ready(metrics)
                    self._started(step + count)
                    self.temporaries_bytes = temporaries_bytes(steps.program)
                step += count
                self.monitor.advance(step)
                self._guard.push(step, count, metrics)  # waits for the devices
                if not first:
                    seconds += time.monotonic() - began
                    self.waiting = steps.waited / seconds
                result = self._evaluate(step, state) if self._evaluation_due(step) else None
                if result or step % experiment.checkpoint_every == 0:
                    self._save(state, result)
                    saved = step
        except Stopped as stop:
            self._save_and_stop(state, saved, stop)
        check_saved(self.manager, wait=True)
        return state, result

    def _started(self, step: int) -> None:
        self.startup.stop()
        self.monitor.restart(step)  # the time to compile says nothing about the steps to come
        self.monitor.announce("")
        self.monitor.show(
            f"{FIRST_STEP} {self.startup.seconds:.1f} s, "
            f"including {self.startup.compile_seconds:.1f} s of compilation"
        )

    def _end_of_call(self, step: int) -> int:
        """Returns the next step after `step` that is recorded, evaluated or saved."""
        experiment = self.experiment
        every = (experiment.log_every, experiment.eval_every, experiment.checkpoint_every)
        return min(experiment.steps, *(step // n * n + n for n in every))

    def _evaluation_due(self, step: int) -> bool:
        return step % self.experiment.eval_every == 0 or step == self.experiment.steps

    def _evaluate(self, step: int, state: TrainState) -> Metrics:
        self._guard.flush()
        self.monitor.announce("evaluating")
        result = self.evaluation(
            state.net,
            state.eval_variables,
            after_batch=lambda: self.stopping.check(self.experiment.mesh),
        )
        self.monitor.evaluate(step, scalars(result))
        if not math.isfinite(result["loss"]):
            self._guard.stop(step + 1, f"evaluation loss {result['loss']}")
        return result

    def _save(self, state: TrainState, result: Metrics | None) -> None:
        self._guard.flush()  # raises if the step was not finite, so that it is not saved
        position = {"seed": self.experiment.data_seed, "step": int(state.step)}
        metrics = None if result is None else scalars(result)
        save(self.manager, state.eval_variables, state.optimizer_state, position, metrics)

    def _save_and_stop(self, state: TrainState, saved: int, stop: Stopped) -> NoReturn:
        step = int(state.step)
        last = self.experiment.steps
        self._guard.flush()
        if step > saved:
            self._save(state, None)
        check_saved(self.manager, wait=True)
        if step == 0:
            raise Stopped(
                f"stopped by {stop} before the first of {last} steps, with nothing to save; "
                "rerun the same command to start again"
            ) from None
        raise Stopped(
            f"stopped by {stop} after step {step} of {last}, which is saved; "
            "rerun the same command to resume"
        ) from None

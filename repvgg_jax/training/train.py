"""Trains an experiment to its last step; resumes from checkpoints and stops on signals."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from repvgg_jax.checkpoint.manager import open_manager, restore_latest, steps
from repvgg_jax.config.build import Experiment
from repvgg_jax.config.classes import check_classes
from repvgg_jax.config.workdir import check_workdir, make_workdir
from repvgg_jax.optim.ema import initial_weight
from repvgg_jax.runtime.compilation import StartupTimer
from repvgg_jax.runtime.devices import explaining_exhausted_memory
from repvgg_jax.runtime.processes import all_processes, exiting_on_error, primary, warn_once
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training.environment import environment
from repvgg_jax.training.evaluation import Evaluation, Metrics
from repvgg_jax.training.history import (
    record_end,
    record_start,
    recorded_options,
    recorded_seconds,
)
from repvgg_jax.training.loop import Loop
from repvgg_jax.training.monitor import Monitor
from repvgg_jax.training.state import (
    Initialization,
    TrainState,
    abstract_state,
    begin_initialization,
)
from repvgg_jax.training.steps import open_steps
from repvgg_jax.training.transfer import start_from_run, warn_if_fused, with_repoptimizer

WITH_LESS_MEMORY = (
    "lower train.eval_batch_size, or train.batch_size in another workdir, or run fewer --processes "
    "in experiments.run; a rerun resumes from the last checkpoint, if any"
)


class TrainResult(NamedTuple):
    """The outcome of `train`.

    Attributes:
      state: the state after the last step.
      metrics: the evaluation of that state; None if no step was left.
      examples_per_second: training speed; None if no step was left.
      waiting: share of the training time spent waiting for data; None if no step was left.
      temporaries_bytes: temporary memory of the compiled step; None if no step was left.
      seconds_before: duration of the run before this process resumed it.
      evaluation: the evaluation split, on the devices if it is in memory.
    """

    state: TrainState
    metrics: Metrics | None
    examples_per_second: float | None
    waiting: float | None
    temporaries_bytes: int | None
    seconds_before: float
    evaluation: Evaluation


def train(
    experiment: Experiment,
    workdir: Path,
    stopping: Stopping | None = None,
    startup: StartupTimer | None = None,
) -> TrainResult:
    """Trains to the last step of an experiment, from its latest checkpoint if there is one.

    A run without a checkpoint starts from the run named in `init_from`, or else from fresh
    variables. Nothing is written until everything that can be checked has been checked.

    Args:
      experiment: the run, from `config.build.build`.
      workdir: folder of the run, writable by every process.
      stopping: stop requests, checked between steps; none by default.
      startup: timer of the first step; by default a new one, started by this call.

    Returns:
      The last state, its evaluation, and how long training took.

    Raises:
      UsageError: if the workdir belongs to another config or other classes, or the weights to
        start from do not fit.
      RunError: if a loss or gradient is not finite, or a checkpoint cannot be written.
      Stopped: if a stop was requested; the state is saved, and the same call resumes.
    """
    startup = startup or StartupTimer()
    stopping = stopping or Stopping()
    check_workdir(experiment.config, workdir)
    warn_if_fused(experiment.net)
    warn_about_average(experiment)
    source = experiment.train_data.source
    names = source.class_names
    if steps(workdir):
        check_classes(workdir, names, source.name, to_train=True)
    experiment, state, initialization = _initial_state_and_data(experiment, workdir)
    evaluation = Evaluation(experiment.eval_data, experiment.mesh)
    make_workdir(experiment.config, workdir, names)
    with (
        open_manager(workdir, experiment.keep) as manager,
        exiting_on_error(),
        explaining_exhausted_memory(WITH_LESS_MEMORY),
    ):
        found = restore_latest(manager, state.eval_variables, state.optimizer_state)
        if found is not None:
            state = state.restored(found.variables, found.optimizer)
        start = 0 if initialization else int(state.step)
        seconds = recorded_seconds(workdir) if start else 0.0
        remaining = open_steps(experiment, state, start) if start < experiment.steps else None
        if primary():
            # Without remaining steps, the options are those that the last start compiled with.
            options = remaining.compiler_options if remaining else recorded_options(workdir)
            computed_by = environment(experiment, options)
            record_start(workdir, experiment.config, computed_by, start, seconds)
        batch_size = experiment.train_data.batch_size
        with Monitor(
            workdir,
            experiment.steps,
            batch_size,
            start,
            primary=primary(),
            began=startup.began,
            seconds_before=seconds,
        ) as monitor:
            # All processes must agree, but only the first one reads the metrics.
            evaluated = all_processes(monitor.evaluated or not primary())
            if start:
                monitor.show(f"resuming from step {start}")
            loop = Loop(experiment, remaining, evaluation, monitor, manager, stopping, startup)
            try:
                if remaining:
                    monitor.announce("compiling")
                    remaining.compile(state)
                if initialization:
                    state = initialization.state()
                state, metrics = loop.run(state, evaluated)
            finally:
                if primary():
                    record_end(workdir, monitor.step, monitor.seconds)
    return TrainResult(
        state=state,
        metrics=metrics,
        examples_per_second=monitor.examples_per_second or None,
        waiting=loop.waiting,
        temporaries_bytes=loop.temporaries_bytes,
        seconds_before=seconds,
        evaluation=evaluation,
    )


def warn_about_average(experiment: Experiment) -> None:
    """Logs a warning if the EMA at the end of the run will be far from the trained weights."""
    options = experiment.step_options
    if options.ema_decay == 0 or experiment.init_from is not None:
        return
    weight = initial_weight(experiment.steps, options.ema_decay, options.ema_warmup)
    if weight > 0.01:
        warn_once(
            "optim.ema_decay=%g is too slow for %d steps: the average, which is evaluated and "
            "fused, will still consist of %.0f%% initial weights; lower it, or set "
            "optim.ema_warmup=True",
            options.ema_decay,
            experiment.steps,
            100 * weight,
        )


_Initial = tuple[Experiment, TrainState, Initialization | None]


def _initial_state_and_data(experiment: Experiment, workdir: Path) -> _Initial:
    """Returns `_initial_state`, which compiles while the data are loaded."""
    with ThreadPoolExecutor(2, "loading") as pool:
        splits = experiment.train_data, experiment.eval_data
        loading = [pool.submit(lambda split=split: split.loaded) for split in splits]
        initial = _initial_state(experiment, workdir)
        for split in loading:
            split.result()
    return initial


def _initial_state(experiment: Experiment, workdir: Path) -> _Initial:
    """Returns the experiment with its final optimizer, and the state before the first step.

    The state consists of `jax.ShapeDtypeStruct`s if there are checkpoints to restore, or if it is
    fresh. In the latter case, the third result is its initialization; otherwise it is None.
    """
    weights = None
    if experiment.repoptimizer_from is not None:
        experiment, weights = with_repoptimizer(experiment)
    if not all_processes(not steps(workdir)):
        return experiment, abstract_state(experiment), None
    initialization = begin_initialization(experiment)
    if weights is None and experiment.init_from is None:
        return experiment, initialization.shapes, initialization
    state = initialization.state()
    if weights is not None:
        state = state.starting_from(weights)
    if experiment.init_from is not None:
        names = experiment.train_data.source.class_names
        state = start_from_run(state, experiment.init_from, names, experiment.init_head)
    return experiment, state, None

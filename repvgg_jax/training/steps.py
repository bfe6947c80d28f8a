"""Steps of a run, on batches that the host sends or that are gathered on the devices."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from repvgg_jax.config.build import Experiment, StepOptions
from repvgg_jax.data.resident import (
    Draws,
    TrainingImages,
    draw,
    gather,
    put_training_images,
)
from repvgg_jax.ops.convolution import is_slow_in_loops
from repvgg_jax.runtime.compilation import cuda_graphs
from repvgg_jax.runtime.loops import stacked_loop
from repvgg_jax.runtime.mesh import place_batches
from repvgg_jax.runtime.processes import inform_once
from repvgg_jax.training.evaluation import Metrics
from repvgg_jax.training.prefetch import Prefetcher
from repvgg_jax.training.state import TrainState
from repvgg_jax.training.step import jit_train_step, step_compiler_options, train_step
from repvgg_jax.training.steps_per_call import StepsPerCall


class StreamedSteps:
    """Takes one step a call, on batches that the host prepares and sends.

    Attributes:
      compiler_options: those of the step.
      program: the compiled step, after `compile`.
      waited: seconds for which the devices waited for the host, from the second step on.
    """

    per_call = 1
    program: jax.stages.Compiled

    def __init__(self, experiment: Experiment, state: TrainState, step: int):
        net, mesh = experiment.net, experiment.mesh
        seeds = (experiment.data_seed, experiment.augmentation_seed)
        batches = experiment.train_data.train_batches(*seeds, step)
        self.waited = 0.0
        self._batches = Prefetcher(batches, mesh)
        self.compiler_options = step_compiler_options(net, mesh) | cuda_graphs(mesh.local_devices)
        self._step = jit_train_step(
            state, mesh, experiment.step_options, compiler_options=self.compiler_options
        )
        self._key = jax.random.key(experiment.augmentation_seed)
        self._watch = ThreadPoolExecutor(1, "step")
        self._finished: Future[float] | None = None

    def compile(self, state: TrainState) -> None:
        """Compiles the step for states of the given shapes."""
        self.program = self._step.lower(state, self._batches.peek(), self._key).compile()

    def take(self, state: TrainState, step: int, count: int) -> tuple[TrainState, Metrics]:
        """Takes one step; returns the state, which replaces the given one, and its metrics."""
        began = time.monotonic()
        batch = next(self._batches)
        # While the devices are busy with the step before, nothing waits for the batch.
        if self._finished is not None and self._finished.done():
            self.waited += time.monotonic() - max(began, self._finished.result())
        state, metrics = self.program(state, batch, self._key)
        self._finished = self._watch.submit(_time_when_ready, metrics)
        return state, metrics


def _time_when_ready(arrays: Any) -> float:
    jax.block_until_ready(arrays)
    return time.monotonic()


class ResidentSteps:
    """Takes many steps a call, on images that are on the devices.

    Where loops are slow (`is_slow_in_loops`), a call takes one step.

    Attributes:
      compiler_options: those of the steps.
      program: the compiled steps, after `compile`.
    """

    program: jax.stages.Compiled

    # Nothing counts as waiting for data: drawing for a step takes 0.1 ms on a CPU, and other
    # devices are still busy with the previous call.
    waited = 0.0

    def __init__(self, experiment: Experiment, state: TrainState, data: TrainingImages):
        self._experiment = experiment
        self._data = data
        net, mesh = experiment.net, experiment.mesh
        looped = not is_slow_in_loops(net.conv_algorithm, net.dtype)
        most = _longest_call(experiment) if looped else 1
        self._length = StepsPerCall(most, experiment.steps_per_call)
        function = train_steps if looped else _train_first_step
        self.compiler_options = step_compiler_options(net, mesh) | cuda_graphs(mesh.local_devices)
        self._steps = jit_train_step(
            state, mesh, experiment.step_options, function, self.compiler_options
        )
        if not looped and (experiment.steps_per_call or 1) > 1:
            inform_once(
                f"train.steps_per_call={experiment.steps_per_call} has no effect on a CPU without "
                "oneDNN, since XLA:CPU computes convolutions in loops slowly"
            )
        self._key = jax.random.key(experiment.augmentation_seed)
        # If the next call is waiting, XLA:CPU runs it before it reports the results of this one.
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"

    @property
    def per_call(self) -> int:
        """Number of steps that the next call should take at most."""
        return self._length.number

    def compile(self, state: TrainState) -> None:
        """Compiles the steps for states of the given shapes."""
        arguments = state, self._data, self._draw(0, 0), np.int32(0), self._key
        self.program = self._steps.lower(*arguments).compile()

    def take(self, state: TrainState, step: int, count: int) -> tuple[TrainState, Metrics]:
        """Takes `count` steps after step `step`.

        Returns:
          The state, which replaces the given one, and the metrics, [per call] each, of which the
          first `count` are valid.
        """
        began = time.monotonic()
        draws = self._draw(step, count)
        state, metrics = self.program(state, self._data, draws, np.int32(count), self._key)
        self._length.wait_and_time(began, count, metrics)
        if self._on_cpu:
            jax.block_until_ready(metrics)
        return state, metrics

    def _draw(self, step: int, count: int) -> Draws:
        """Returns this process's share of the draws of some steps, on the mesh."""
        experiment = self._experiment
        split, mesh = experiment.train_data, experiment.mesh
        local = split.batch_size // jax.process_count()
        padded = np.zeros((len(Draws._fields), self._length.most, local), np.int32)
        for row in range(count):
            first = (step + row) * split.batch_size + jax.process_index() * local
            padded[:, row] = draw(
                len(split.loaded),
                split.transform,
                experiment.data_seed,
                experiment.augmentation_seed,
                first + np.arange(local),
            )
        return Draws(**place_batches(dict(zip(Draws._fields, padded, strict=True)), mesh))


def _longest_call(experiment: Experiment) -> int:
    """Returns the largest number of steps between two at which a call has to end."""
    ends = {
        "train.log_every": experiment.log_every,
        "train.eval_every": experiment.eval_every,
        "train.checkpoint_every": experiment.checkpoint_every,
    }
    name, most = min(ends.items(), key=lambda item: item[1])
    if (experiment.steps_per_call or 1) > most:
        inform_once(
            f"train.steps_per_call={experiment.steps_per_call} is larger than {name}={most}, where "
            f"calls end, so that a call takes at most {most}"
        )
    return min(most, experiment.steps)


def open_steps(
    experiment: Experiment, state: TrainState, step: int = 0
) -> StreamedSteps | ResidentSteps:
    """Returns the steps of a run: on the devices if the images fit there, else streamed.

    Args:
      experiment: the run.
      state: a state, or its shapes, types and shardings.
      step: number of steps taken before.
    """
    data = put_training_images(experiment.train_data, experiment.mesh)
    if data is not None:
        return ResidentSteps(experiment, state, data)
    if (experiment.steps_per_call or 1) > 1:
        inform_once(
            f"train.steps_per_call={experiment.steps_per_call} has no effect: the host sends the "
            "images of each step"
        )
    return StreamedSteps(experiment, state, step)


def train_steps(
    state: TrainState,
    data: TrainingImages,
    draws: Draws,
    count: Array,
    key: Array,
    options: StepOptions = StepOptions(),  # noqa: B008 (frozen)
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes `count` steps in one program.

    The program is a loop of a length that is only known when it runs, so that it is compiled once,
    and its results do not depend on how many steps a call takes.

    Args:
      state: the state before the steps.
      data: the training set.
      draws: draws of each step, [most steps, batch] each.
      count: number of steps to take, up to the first dimension of the draws.
      key: as for `train_step`.
      options: as for `train_step`.
      mesh: as for `train_step`.

    Returns:
      The new state, and the metrics of each step, [most steps].
    """

    def step(state: TrainState, index: Array) -> tuple[TrainState, Metrics]:
        batch = gather(data, jax.tree.map(lambda rows: rows[index], draws))
        return train_step(state, batch, key, options, mesh)

    return stacked_loop(step, state, count, most=draws.index.shape[0])


def _train_first_step(
    state: TrainState,
    data: TrainingImages,
    draws: Draws,
    count: Array,
    key: Array,
    options: StepOptions,
    mesh: Mesh | None,
) -> tuple[TrainState, Metrics]:
    """Takes one step; arguments and results are those of `train_steps`."""
    batch = gather(data, jax.tree.map(lambda rows: rows[0], draws))
    state, metrics = train_step(state, batch, key, options, mesh)
    return state, jax.tree.map(lambda value: value[None], metrics)

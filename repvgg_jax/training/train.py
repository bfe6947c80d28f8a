"""Training: from a config to the last state, through checkpoints, faults and signals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from absl import logging
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax.blocks.csla import CSLABlock
from repvgg_jax.blocks.registry import BLOCKS, module_type
from repvgg_jax.checkpoint import load
from repvgg_jax.checkpoint import manager as manager_module
from repvgg_jax.config.build import (
    augmentation_seed,
    config_mesh,
    data_seed,
    make_net,
    make_optimizer,
    make_schedule,
    make_source,
    make_transform,
    total_steps,
)
from repvgg_jax.config.fields import check_values
from repvgg_jax.config.workdir import check_workdir, make_workdir
from repvgg_jax.data.images import to_network_input
from repvgg_jax.data.pipeline import train_batches
from repvgg_jax.data.sources.base import Source
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import init
from repvgg_jax.optim.repoptimizer import scale_gradients, to_plain, with_scales
from repvgg_jax.runtime.compilation import StartupTimer, jit
from repvgg_jax.runtime.processes import all_processes, leaving_at_once, primary
from repvgg_jax.runtime.signals import Stopping
from repvgg_jax.training.evaluation import Batch, Evaluation, Metrics, eval_step, evaluate
from repvgg_jax.training.loop import Loop
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics
from repvgg_jax.training.monitor import Monitor
from repvgg_jax.training.nan_guard import Watch
from repvgg_jax.training.prefetch import Feed
from repvgg_jax.training.step import TrainState, abstract_state, init_state, train_step
from repvgg_jax.training.transfer import transfer, warn_if_fused


class Trained(NamedTuple):
    """What `train` leaves.

    Attributes:
      state: the last.
      examples_per_second: in training; None where no step was left to take.
      waiting: share of the training time spent waiting for data; None likewise.
      start: how long this start took to its first step; its numbers are None where none was left.
      seconds_before: that the run took before this start.
      skipped: corrupt images left out, of each split.
      evaluation: of the test split.
      metrics: what it gave for the last state; None where no step was left to take.
    """

    state: TrainState
    examples_per_second: float | None
    waiting: float | None
    startup: StartupTimer
    seconds_before: float
    skipped: dict[str, int]
    evaluation: Evaluation
    metrics: Metrics | None


def train(config: ConfigDict, workdir: Path, stopping: Stopping | None = None) -> Trained:
    """Train to the config's last step. Nothing is written before all that can be checked was.

    What a run starts from, in this order: the latest checkpoint in the workdir that can be read;
    else the run that `config.init_from` names; else fresh parameters from `config.seed`.

    Args:
      config: of the run.
      workdir: its folder, which every process can write to.
      stopping: asked between steps whether to stop; by default for the config's deadline alone.

    Raises:
      UsageError: for a config that cannot run, or a workdir that is not this config's.
      RunError: where the loss or the gradient is not finite, or a checkpoint cannot be written.
      Stopped: where it was told to stop; the state is saved, and the same call goes on.
    """
    startup = StartupTimer()
    check_values(config)
    mesh = config_mesh(config)
    check_workdir(config, workdir)
    net, source = make_net(config), make_source(config, "train")
    warn_if_fused(net)
    schedule, steps = make_schedule(config, len(source)), total_steps(config, len(source))
    evaluation = Evaluation(config, mesh)
    tx, first = _optimizer(config, net, schedule)
    average, min_size = config.optim.ema_decay > 0, config.mesh.min_size
    state = abstract_state(net, tx, mesh, average, min_size)
    if all_processes(not manager_module.steps(workdir)):
        state = init_state(net, tx, mesh, jax.random.key(config.seed), average, min_size)
        if first is not None:
            state = state.starting_from(first)
        if config.init_from is not None:
            state = _transferred(config.init_from, state)
    _train_batches(config, source, 0)  # for its checks

    make_workdir(config, workdir)
    with manager_module.open_manager(workdir, config.train.keep) as manager, leaving_at_once():
        if restored := manager_module.restore_latest(manager, state.variables, state.optimizer):
            state = state.restored(*restored[:2])
        start = int(state.step)
        curves = workdir / METRICS_FILE
        rows = read_metrics(curves) if start and curves.exists() else []
        before = max((row["seconds"] for row in rows if row["step"] <= start), default=0.0)
        with Monitor(workdir, steps, config.train.batch_size, start, primary=primary()) as monitor:
            if start:
                monitor.resumed(start)
            loop = Loop(
                step_fn=jit_train_step(config, mesh, state),
                key=jax.random.key(augmentation_seed(config)),
                seed=data_seed(config),
                steps=steps,
                eval_every=config.train.eval_every or -(-len(source) // config.train.batch_size),
                checkpoint_every=config.train.checkpoint_every,
                mesh=mesh,
                feed=Feed(_train_batches(config, source, start), mesh),
                evaluation=evaluation,
                monitor=monitor,
                manager=manager,
                watch=Watch(monitor, schedule, config.train.log_every, steps, manager),
                startup=startup,
                stopping=stopping or Stopping(config.train.deadline),
            )
            evaluated = {row["step"] for row in rows if row["kind"] == "eval"}
            # Asked of all, as not every process may see the file as it is now.
            state, result = loop.run(state, all_processes(start in evaluated))
    skipped = {"train": len(source.skipped), "test": len(evaluation.source.skipped)}
    rate = monitor.examples_per_second or None
    return Trained(state, rate, loop.waiting, startup, before, skipped, evaluation, result)


def _train_batches(config: ConfigDict, source: Source, start_step: int) -> Iterator[Batch]:
    return train_batches(
        source,
        make_transform(config),
        config.train.batch_size,
        data_seed(config),
        start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        augmentation_seed=augmentation_seed(config),
    )


def jit_train_step(
    config: ConfigDict, mesh: Mesh, state: TrainState
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """The step that `config` describes, which keeps the state where it lies on the mesh.

    Args:
      config: of the run.
      mesh: that its batches are split over.
      state: of arrays, or of `jax.ShapeDtypeStruct`s with shardings; the step donates it.
    """
    step = partial(
        train_step,
        label_smoothing=config.optim.label_smoothing,
        mixup=config.train.mixup,
        cutmix=config.train.cutmix,
        auxiliary_weight=config.optim.auxiliary_weight,
        custom_l2=config.optim.weight_decay if config.optim.custom_l2 else 0.0,
        ema_decay=config.optim.ema_decay,
        accumulate=config.train.accumulate,
        bn_group_size=config.model.bn_group_size,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        mesh=mesh if config.mesh.fsdp != 1 else None,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jit(step, mesh.devices.flat, donate_argnums=0, out_shardings=(shardings, None))


def _optimizer(
    config: ConfigDict, net: nn.Module, schedule: optax.Schedule
) -> tuple[optax.GradientTransformation, dict[str, Any] | None]:
    """The optimizer; RepOptimizer's has a searched run's branches in it, and weights to start from.

    Raises:
      UsageError: where that run, or what else the config asks for, doesn't go with RepOptimizer.
    """
    tx, workdir = make_optimizer(config, schedule), config.optim.repoptimizer_from
    if workdir is None:
        return tx, None
    if net != net.clone(block=BLOCKS["plain"].block):
        raise UsageError("optim.repoptimizer_from trains a plain net: set model.block=plain")
    if config.optim.clip_norm is not None or config.optim.max_norm is not None:
        raise UsageError(
            "optim.clip_norm and max_norm break what optim.repoptimizer_from relies on; drop them"
        )
    if net.initializer is not None:
        raise UsageError("optim.repoptimizer_from says how the net starts; drop model.initializer")
    source, searched = load.load(workdir)
    if module_type(source.block) is not CSLABlock:
        raise UsageError(
            f"optim.repoptimizer_from={workdir}: its block is {module_type(source.block).__name__}"
            "; it must be a run with model.block=csla, which has the scales"
        )
    branches = net.clone(block=BLOCKS["csla"].block)
    fresh = init(branches, jax.random.key(config.seed))
    transfer(fresh, searched)  # refuses another net's
    _, start = to_plain(branches, with_scales(branches, fresh, searched))
    return optax.chain(scale_gradients(branches, searched), tx), start


def _transferred(workdir: str, state: TrainState) -> TrainState:
    """The state with the weights of another run's latest checkpoint, saying what stays fresh."""
    _, source = load.load(workdir)
    variables, renewed = transfer(state.trained, source)
    logging.warning("from %s; new: %s", workdir, ", ".join(renewed) or "nothing")
    return state.starting_from(variables)


__all__ = [
    "TrainState",
    "Trained",
    "to_network_input",
    "eval_step",
    "evaluate",
    "init_state",
    "jit_train_step",
    "train",
    "train_step",
]

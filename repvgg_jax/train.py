"""The training step, and the loop around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repvgg_jax import checkpoint
from repvgg_jax.averages import as_average, update_average
from repvgg_jax.blocks import BLOCKS
from repvgg_jax.config import (
    check_values,
    check_workdir,
    make_net,
    make_optimizer,
    make_schedule,
    make_source,
    make_transform,
    make_workdir,
    total_steps,
)
from repvgg_jax.data import IMAGENET_MEAN, IMAGENET_STD, Source, train_batches
from repvgg_jax.errors import UsageError
from repvgg_jax.evaluation import Batch, Evaluation, Metrics, as_images, eval_step, evaluate
from repvgg_jax.finetune import transfer, warn_if_fused
from repvgg_jax.monitor import Monitor
from repvgg_jax.nets import init
from repvgg_jax.nets.repvgg import AUXILIARY
from repvgg_jax.records import METRICS_FILE, read_metrics
from repvgg_jax.repoptimizer import scale_gradients, to_plain, with_scales
from repvgg_jax.sharding import check_divides, make_mesh, replicated, shard_batch
from repvgg_jax.watch import Watch


class TrainState(struct.PyTreeNode):
    """All that a step changes, with the net and the optimizer that change it as static parts."""

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any  # the averaged `{"params", "batch_stats"}`, or None
    net: nn.Module = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    @property
    def variables(self) -> dict[str, Any]:
        """The pair that is evaluated, fused and loaded: the average where one is kept."""
        return self.ema or self.trained

    @property
    def trained(self) -> dict[str, Any]:
        """The pair that the optimizer moves."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def optimizer(self) -> dict[str, Any]:
        """What a checkpoint needs besides `variables`."""
        state = {"step": self.step, "opt_state": self.opt_state}
        return state | ({"trained": self.trained} if self.ema else {})

    def restored(self, variables: Any, optimizer: Mapping[str, Any]) -> TrainState:
        """The state of which `variables` and `optimizer` were saved."""
        trained = {"batch_stats": {}} | optimizer.get("trained", variables)
        ema = as_average(variables) if self.ema else None
        step, opt_state = optimizer["step"], optimizer["opt_state"]
        return self.replace(**trained, step=step, opt_state=opt_state, ema=ema)

    def starting_from(self, variables: Mapping[str, Any]) -> TrainState:
        """The same state with other weights, laid out as its own were; the average starts there."""
        trained = {"batch_stats": {}} | variables
        trained = jax.device_put(trained, jax.tree.map(lambda leaf: leaf.sharding, self.trained))
        return self.replace(**trained, ema=as_average(trained) if self.ema else None)


def init_state(
    net: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    key: Array,
    average: bool = False,
) -> TrainState:
    """A fresh state, born on the mesh: a copy on every device, made there."""

    def build(key: Array) -> TrainState:
        variables = init(net, key)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        ema = as_average({"params": params, "batch_stats": batch_stats}) if average else None
        return TrainState(jnp.int32(0), params, batch_stats, tx.init(params), ema, net, tx)

    shapes = jax.eval_shape(build, key)
    shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
    return jax.jit(build, out_shardings=shardings)(key)


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    label_smoothing: float = 0.0,
    auxiliary_weight: float = 0.1,
    ema_decay: float = 0.0,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> tuple[TrainState, Metrics]:
    """One update. Under `jit` a sharded batch has the gradient and statistics of the whole.

    Args:
      state: of the step before.
      batch: `image` [batch, height, width, 3], uint8 or normalised, and `label` [batch].
      key: for nets that draw (dropout, stochastic depth); the step is folded in.
      label_smoothing: share of the target that is spread over all classes.
      auxiliary_weight: of each auxiliary head's loss, where the net has such heads.
      ema_decay: of the average, where the state keeps one.
      mean, std: of [0, 1] RGB, for uint8 images.

    Returns:
      the new state, and `loss` (nats), `top1` of the training batch, `grad_norm`.
    """
    images = as_images(batch["image"], mean, std)
    rngs = {"dropout": jax.random.fold_in(key, state.step)}

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.net.apply(
            variables, images, train=True, mutable=["batch_stats", AUXILIARY], rngs=rngs
        )
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], logits.shape[-1]), label_smoothing
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        for other in jax.tree.leaves(updated.get(AUXILIARY, {})):
            loss += auxiliary_weight * optax.softmax_cross_entropy(other, targets).mean()
        return loss, (logits, updated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "top1": (logits.argmax(-1) == batch["label"]).mean(),
        "grad_norm": optax.tree.norm(grads),
    }
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if state.ema:
        state = state.replace(ema=update_average(state.ema, state.trained, ema_decay))
    return state, metrics


class Trained(NamedTuple):
    """What `train` leaves.

    Attributes:
      state: the last.
      examples_per_second: in training; None where no step was left to take.
      seconds_before: that the run took before this start.
      skipped: corrupt images left out, of each split.
      evaluation: of the test split.
      metrics: what it gave for the last state; None where no step was left to take.
    """

    state: TrainState
    examples_per_second: float | None
    seconds_before: float
    skipped: dict[str, int]
    evaluation: Evaluation
    metrics: dict[str, float] | None


def train(config: ConfigDict, workdir: Path) -> Trained:
    """Train to the config's last step. Nothing is written before all that can be checked was.

    What a run starts from, in this order: the latest checkpoint in the workdir; else the run that
    `config.init_from` names; else fresh parameters from `config.seed`.

    Raises:
      UsageError: for a config that cannot run, or a workdir that is not this config's.
      RunError: where the loss or the gradient is not finite.
    """
    mesh = make_mesh()
    check_values(config)
    check_divides("train.batch_size", config.train.batch_size, mesh)
    check_divides("train.eval_batch_size", config.train.eval_batch_size, mesh)
    check_workdir(config, workdir)
    net, source = make_net(config), make_source(config, "train")
    warn_if_fused(net)
    schedule, steps = make_schedule(config, len(source)), total_steps(config, len(source))
    evaluation = Evaluation(config, mesh)
    eval_every = config.train.eval_every or -(-len(source) // config.train.batch_size)
    key = jax.random.key(config.seed)
    average = config.optim.ema_decay > 0
    tx, start = make_optimizer(config, schedule), None
    if config.optim.repoptimizer_from is not None:
        tx, start = _repoptimizer(config, net, tx, key)
    state = init_state(net, tx, mesh, key, average)
    if start is not None:
        state = state.starting_from(start)
    _train_batches(config, source, 0)  # for its checks
    if config.init_from is not None and not checkpoint.steps(workdir):
        state = _transferred(config.init_from, state)

    make_workdir(config, workdir)
    manager = checkpoint.open_manager(workdir, config.train.keep)
    if (latest := manager.latest_step()) is not None:
        found = checkpoint.restore(manager, state.variables, state.optimizer, latest)
        state = state.restored(*found[:2])
    start, result = int(state.step), None
    batches = _train_batches(config, source, start)
    step_fn = _jit_train_step(config)
    primary = jax.process_index() == 0
    rows = read_metrics(workdir / METRICS_FILE) if start else []
    before = max((row["seconds"] for row in rows if row["step"] <= start), default=0.0)
    monitor = Monitor(workdir, steps, config.train.batch_size, start_step=start, primary=primary)
    with monitor, manager:
        watch = Watch(monitor, schedule, config.train.log_every, steps, manager)
        for step in range(start + 1, steps + 1):
            state, metrics = step_fn(state, shard_batch(next(batches), mesh), key)
            watch.push(step, metrics)
            result = None
            if step % eval_every == 0 or step == steps:
                watch.flush()
                result = evaluation(state.net, state.variables)
                monitor.evaluate(step, result)
                if not math.isfinite(result["loss"]):
                    watch.stop(step + 1, f"evaluation loss {result['loss']}")
            if result or step % config.train.checkpoint_every == 0:
                watch.flush()  # a step that was not finite is not worth keeping
                position = {"seed": config.seed, "step": step}
                checkpoint.save(manager, state.variables, state.optimizer, position, result)
        manager.wait_until_finished()
    skipped = {"train": len(source.skipped), "test": len(evaluation.source.skipped)}
    return Trained(state, monitor.examples_per_second or None, before, skipped, evaluation, result)


def _train_batches(config: ConfigDict, source: Source, start_step: int) -> Iterator[Batch]:
    return train_batches(
        source,
        make_transform(config),
        config.train.batch_size,
        config.seed,
        start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )


def _jit_train_step(config: ConfigDict) -> Callable[..., tuple[TrainState, Metrics]]:
    step = partial(
        train_step,
        label_smoothing=config.optim.label_smoothing,
        auxiliary_weight=config.optim.auxiliary_weight,
        ema_decay=config.optim.ema_decay,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )
    return jax.jit(step, donate_argnums=0)


def _repoptimizer(
    config: ConfigDict, net: nn.Module, tx: optax.GradientTransformation, key: Array
) -> tuple[optax.GradientTransformation, dict[str, Any]]:
    """The optimizer with the branches of a searched run in it, and the weights to start from."""
    workdir = config.optim.repoptimizer_from
    if net != net.clone(block=BLOCKS["plain"].block):
        raise UsageError("optim.repoptimizer_from trains a plain net: set model.block=plain")
    if config.optim.clip_norm is not None or config.optim.max_norm is not None:
        raise UsageError(
            "optim.clip_norm and max_norm break what optim.repoptimizer_from relies on; drop them"
        )
    searched = checkpoint.load(workdir)[1]
    branches = net.clone(block=BLOCKS["csla"].block)
    fresh = init(branches, key)
    transfer(fresh, searched)  # refuses another net's
    _, start = to_plain(branches, with_scales(branches, fresh, searched))
    return optax.chain(scale_gradients(branches, searched), tx), start


def _transferred(workdir: str, state: TrainState) -> TrainState:
    """The state with the weights of another run's latest checkpoint, saying what stays fresh."""
    _, source = checkpoint.load(workdir)
    variables, renewed = transfer(state.trained, source)
    logging.warning("from %s; new: %s", workdir, ", ".join(renewed) or "nothing")
    return state.starting_from(variables)


__all__ = [
    "TrainState",
    "Trained",
    "as_images",
    "eval_step",
    "evaluate",
    "init_state",
    "train",
    "train_step",
]

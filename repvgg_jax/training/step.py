"""The training step: a pure function of a state and a batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import Mesh

from repvgg_jax.data.images import IMAGENET_MEAN, IMAGENET_STD, to_network_input
from repvgg_jax.nets import as_average, init
from repvgg_jax.nets.repvgg import AUXILIARY
from repvgg_jax.optim import sgd
from repvgg_jax.optim.ema import update_average
from repvgg_jax.runtime.mesh import FSDP_MIN_SIZE, parameter_shardings, place, replicated
from repvgg_jax.training.evaluation import Batch, Metrics
from repvgg_jax.training.mixing import mix


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
        trained = jax.tree.map(lambda leaf, own: place(leaf, own.sharding), trained, self.trained)
        return self.replace(**trained, ema=as_average(trained) if self.ema else None)


def abstract_state(
    net: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    average: bool = False,
    min_size: int = FSDP_MIN_SIZE,
) -> TrainState:
    """Shapes, types and shardings of `init_state`'s result; nothing is computed."""
    shapes = jax.eval_shape(partial(_fresh_state, net, tx, average), jax.random.key(0))
    shardings = parameter_shardings(shapes, mesh, min_size)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def init_state(
    net: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    key: Array,
    average: bool = False,
    min_size: int = FSDP_MIN_SIZE,
) -> TrainState:
    """A fresh state, born on the mesh as `parameter_shardings` says: no host ever holds it."""
    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(net, tx, mesh, average, min_size)
    )
    return jax.jit(partial(_fresh_state, net, tx, average), out_shardings=shardings)(key)


def _fresh_state(
    net: nn.Module, tx: optax.GradientTransformation, average: bool, key: Array
) -> TrainState:
    variables = init(net, key)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ema = as_average({"params": params, "batch_stats": batch_stats}) if average else None
    return TrainState(jnp.int32(0), params, batch_stats, tx.init(params), ema, net, tx)


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    auxiliary_weight: float = 0.1,
    custom_l2: float = 0.0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    bn_group_size: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One update. Under `jit` a sharded batch has the gradient and statistics of the whole.

    Args:
      state: of the step before.
      batch: `image` [batch, height, width, 3], uint8 or normalised, and `label` [batch].
      key: for mixing, and nets that draw (dropout, stochastic depth); the step is folded in.
      label_smoothing: share of the target that is spread over all classes.
      mixup, cutmix: alphas, as `mixing.mix` has them.
      auxiliary_weight: of each auxiliary head's loss, where the net has such heads.
      custom_l2: weight decay of the kernels that `optim.custom_l2` is of, half of which times that
        is added to the loss that is minimised, and not to the one that is returned.
      ema_decay: of the average, where the state keeps one.
      accumulate: microbatches that the batch is taken in, one after the other, to save memory. The
        update is that of the whole batch where BatchNorm's groups are parts of a microbatch.
      bn_group_size: the net's, so that microbatches keep its groups whole.
      mean, std: of [0, 1] RGB, for uint8 images.
      mesh: where the state is split over `fsdp`, to gather each parameter for its use.

    Returns:
      the new state, and `loss` (nats), `top1` of the training batch, `grad_norm`.
    """
    mix_key, key = jax.random.split(jax.random.fold_in(key, state.step))
    images, classes = to_network_input(batch["image"], mean, std), state.net.num_classes
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], classes), label_smoothing)
    images, targets = mix(mix_key, images, targets, mixup=mixup, cutmix=cutmix)
    parts = (images, targets, batch["label"])

    def loss_fn(
        params: Any, images: Array, targets: Array, label: Array, key: Array
    ) -> tuple[Array, Any]:
        if mesh is not None:
            params = jax.lax.with_sharding_constraint(params, replicated(mesh))
        logits, updated = state.net.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats", AUXILIARY],
            rngs={"dropout": key},
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        for other in jax.tree.leaves(updated.get(AUXILIARY, {})):
            loss += auxiliary_weight * optax.softmax_cross_entropy(other, targets).mean()
        batch_stats = updated.get("batch_stats", {})
        penalty = custom_l2 / 2 * sgd.custom_l2(params, batch_stats) if custom_l2 else 0.0
        top1 = (logits.argmax(-1) == label).mean()
        return loss + penalty, {"loss": loss, "top1": top1, "batch_stats": batch_stats}

    gradient = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        grads, found = gradient(state.params, *parts, key)
    else:
        parts = tuple(_microbatches(part, accumulate, bn_group_size or 1) for part in parts)
        parts = (*parts, jax.random.split(key, accumulate))
        grads, found = _mean_over(lambda part: gradient(state.params, *part), parts)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    new = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=found.pop("batch_stats"),
        opt_state=opt_state,
    )
    if new.ema:
        new = new.replace(ema=update_average(new.ema, new.trained, ema_decay))
    return new, found | {"grad_norm": optax.tree.norm(grads)}


def _microbatches(rows: Array, count: int, run: int) -> Array:
    """[batch, ...] -> [count, batch / count, ...], microbatch j having runs j, j + count, ...

    In runs of rows rather than halves, so that each device has its part of every microbatch, and of
    as many rows as a BatchNorm's group, so that the groups stay what they were.
    """
    cut = rows.reshape(-1, count, run, *rows.shape[1:]).swapaxes(0, 1)
    return cut.reshape(count, -1, *rows.shape[1:])


def _mean_over(function: Any, parts: Any) -> Any:
    """The mean of `function` over the parts' leading axis, one at a time."""
    count = jax.tree.leaves(parts)[0].shape[0]
    first = jax.tree.map(lambda part: part[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
    )

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda leaf: leaf / count, total)

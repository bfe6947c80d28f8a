"""The training step: a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from repvgg_jax.config.build import StepOptions
from repvgg_jax.data.images import to_network_input
from repvgg_jax.data.pipeline import Batch
from repvgg_jax.nets import AUXILIARY
from repvgg_jax.ops.convolution import is_slow_in_loops
from repvgg_jax.optim import sgd
from repvgg_jax.optim.ema import decay_at, update_average
from repvgg_jax.runtime.compilation import KEEP_RECOMPUTATION, barrier
from repvgg_jax.runtime.mesh import replicated
from repvgg_jax.training.evaluation import Metrics
from repvgg_jax.training.mixing import mix
from repvgg_jax.training.state import TrainState


def jit_train_step(
    state: TrainState,
    mesh: Mesh,
    options: StepOptions,
    function: Callable[..., tuple[TrainState, Metrics]] | None = None,
    compiler_options: Mapping[str, str] | None = None,
) -> jax.stages.Wrapped:
    """Returns `function` under `jax.jit`, which donates the state and keeps its shardings.

    Args:
      state: the state before the step; it may consist of `jax.ShapeDtypeStruct`s with shardings.
      mesh: the mesh of the state.
      options: constants of the step.
      function: `train_step` by default, or another function that takes its first argument and its
        options and mesh.
      compiler_options: `step_compiler_options` by default.
    """
    split = mesh.shape.get("fsdp", 1) > 1
    if compiler_options is None:
        compiler_options = step_compiler_options(state.net, mesh)
    step = partial(function or train_step, options=options, mesh=mesh if split else None)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=dict(compiler_options) or None,
    )


def step_compiler_options(net: nn.Module, mesh: Mesh) -> dict[str, str]:
    """Returns the compiler options of the training step."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return KEEP_RECOMPUTATION if on_cpu and net.remat is not None else {}


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    options: StepOptions = StepOptions(),  # noqa: B008 (frozen)
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on the cross-entropy of a batch.

    Under `jit` over a sharded batch, the gradient and the BatchNorm statistics are those of the
    global batch.

    Args:
      state: the state before the step.
      batch: `image` [batch, height, width, 3], uint8 or normalized, and `label` [batch].
      key: base PRNG key for mixing, dropout and stochastic depth; the step is folded in.
      options: constants of the step.
      mesh: the state's mesh if it is split over the axis `fsdp` (its parameters are gathered before
        use); otherwise None.

    Returns:
      The new state, and `loss` (nats), `top1` of the training batch, `grad_norm`.
    """
    mix_key, net_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = to_network_input(batch["image"], options.mean, options.std)
    targets = jax.nn.one_hot(batch["label"], state.net.num_classes)
    targets = optax.smooth_labels(targets, options.label_smoothing)
    images, targets = mix(mix_key, images, targets, mixup=options.mixup, cutmix=options.cutmix)

    def loss_fn(params: Any, part: tuple[Array, ...]) -> tuple[Array, Metrics]:
        images, targets, label, key = part
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
            cross_entropy = optax.softmax_cross_entropy(other, targets).mean()
            loss += options.auxiliary_weight * cross_entropy
        batch_stats = updated.get("batch_stats", {})
        minimized = loss
        if options.custom_l2:
            minimized += (
                options.custom_l2 / 2 * sgd.custom_l2(params, batch_stats, state.net.bn_epsilon)
            )
        top1 = (logits.argmax(-1) == label).mean()
        return minimized, {"loss": loss, "top1": top1, "batch_stats": batch_stats}

    gradient = jax.grad(loss_fn, has_aux=True)
    examples = (images, targets, batch["label"])
    count = options.accumulate
    if count == 1:
        grads, metrics = gradient(state.params, (*examples, net_key))
    else:
        group = options.bn_group_size or 1
        parts = [_microbatches(rows, count, group) for rows in examples]
        keys = jax.random.split(net_key, count)
        looped = not is_slow_in_loops(state.net.conv_algorithm, state.net.dtype)
        grads, metrics = _mean_over(partial(gradient, state.params), (*parts, keys), looped)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=metrics.pop("batch_stats"),
        opt_state=opt_state,
    )
    if state.ema:
        decay = decay_at(state.step - 1, options.ema_decay, options.ema_warmup)
        ema = update_average(state.ema, state.train_variables, decay)
        state = state.replace(ema=ema)
    return state, metrics | {"grad_norm": optax.tree.norm(grads)}


def _microbatches(rows: Array, count: int, group: int) -> Array:
    """Cuts [batch, ...] into [count, batch / count, ...]; microbatch j has groups j, j + count, ...

    Groups are assigned round-robin instead of in contiguous parts, so that every device holds a
    part of every microbatch. A group is a BatchNorm group, which must not be split.
    """
    groups = rows.reshape(-1, count, group, *rows.shape[1:]).swapaxes(0, 1)
    return groups.reshape(count, -1, *rows.shape[1:])


def _mean_over(function: Any, parts: Any, looped: bool) -> Any:
    """Returns the mean of `function` over the leading axis of `parts`, computed sequentially.

    If `looped`, in a loop; otherwise, by a program that repeats the function.
    """
    count = jax.tree.leaves(parts)[0].shape[0]
    first = jax.tree.map(lambda part: part[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, first))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    if looped:
        total, _ = jax.lax.scan(add, zeros, parts)
    else:
        total = zeros
        for index in range(count):
            # The barrier keeps XLA from computing several parts at once, which would need more
            # memory.
            part = jax.tree.map(lambda part, index=index: part[index], parts)
            total, _ = add(*barrier((total, part)))
    return jax.tree.map(lambda leaf: leaf / count, total)

"""The paper's optimizer: SGD with momentum, a cosine schedule, and rules by parameter name."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from repvgg_jax.ops.batch_norm import BN_EPSILON, per_channel

# (regular expression, value): the first that matches a whole name, such as
# `stage0_block0/conv_kxk/kernel`, wins.
NameRules = Sequence[tuple[str, float]]


def by_name(params: Any, rules: NameRules, default: float) -> Any:
    """Returns a tree like `params` of the value of the first rule that matches each name."""

    def value(path: tuple, _: Any) -> float:
        name = "/".join(key.key for key in path)
        return next((v for pattern, v in rules if re.fullmatch(pattern, name)), default)

    return jax.tree_util.tree_map_with_path(value, params)


def cosine_schedule(
    learning_rate: float, batch_size: int, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Returns a linear warm-up from 0, then half a cosine to 0 at `total_steps`.

    Args:
      learning_rate: peak for a batch of 256 images; it scales linearly with `batch_size` (RepVGG
        trains 256 images at 0.1, and a larger batch at an unscaled learning rate loses accuracy).
      batch_size: images per step over all devices.
      total_steps: steps of the run, the warm-up included.
      warmup_steps: steps of the warm-up.

    Examples:
      >>> schedule = cosine_schedule(0.1, batch_size=512, total_steps=100)
      >>> float(schedule(0)).__round__(3), float(schedule(50)).__round__(3)
      (0.2, 0.1)
    """
    peak = learning_rate * batch_size / 256
    if warmup_steps == 0:
        return optax.cosine_decay_schedule(peak, total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay_rules: NameRules = ((r".*kernel", 1.0),),
    rate_rules: NameRules = (),
    custom_l2: bool = False,
) -> optax.GradientTransformation:
    """Returns the SGD that RepVGG was trained with (arXiv 2101.03697, section 4.1, and its code).

    m <- momentum m + g + weight_decay d W,  W <- W - r lr m, where d (0 if no rule matches) and r
    (1 if no rule matches) are the parameter's factors by name.

    Args:
      schedule: learning rate by step.
      momentum: decay of the trace.
      nesterov: True for Nesterov momentum, which the paper's runs do not use.
      weight_decay: factor of the L2 decay, which is added to the gradient before the momentum.
      decay_rules: rules for d.
      rate_rules: rules for r, such as 2 for biases.
      custom_l2: True if d is 0 for the kernels whose decay `custom_l2` adds to the loss.
    """

    def decay(grads: Any, params: Any) -> Any:
        factors = by_name(params, decay_rules, 0.0)
        for block in _two_branched(params) if custom_l2 else ():
            factors[block] |= {"conv_kxk": {"kernel": 0.0}, "conv_1x1": {"kernel": 0.0}}
        return jax.tree.map(lambda g, p, d: g + weight_decay * d * p, grads, params, factors)

    def rate(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, r: u * r, updates, by_name(params, rate_rules, 1.0))

    return optax.chain(
        optax.stateless(decay),
        optax.trace(momentum, nesterov),
        optax.stateless(rate),
        optax.scale_by_learning_rate(schedule),
    )


def custom_l2(params: Mapping[str, Any], batch_stats: Mapping[str, Any]) -> Array:
    """Returns the L2 of RepVGG's blocks as in the released code; the loss has half of it.

    With t = gamma / sigma of each branch's BatchNorm (of its running variance, without a gradient),
    C the center tap and R the other taps of the kxk,
      sum over blocks of |R|^2 + sum |t_k C + t_1 W_1|^2 / (t_k^2 + t_1^2),
    so that the 1x1 and the tap that it is added to decay as the one tap that they fuse to. The
    identity has no part in it, and blocks without a kxk and a 1x1 branch add nothing.
    (DingXiaoH/RepVGG, `get_custom_L2`.)
    """
    total = jnp.zeros(())
    for block in _two_branched(params):
        layers, stats = params[block], batch_stats[block]
        tk, t1 = (_bn_scale(layers[norm], stats[norm]) for norm in ("bn_kxk", "bn_1x1"))
        kernel = layers["conv_kxk"]["kernel"]
        middle = kernel.shape[0] // 2
        center = kernel[middle, middle]
        tk, t1 = (per_channel(t, center) for t in (tk, t1))
        fused = tk * center + t1 * layers["conv_1x1"]["kernel"][0, 0]
        total += jnp.sum(kernel**2) - jnp.sum(center**2) + jnp.sum(fused**2 / (tk**2 + t1**2))
    return total


def _bn_scale(params: Mapping[str, Array], stats: Mapping[str, Array]) -> Array:
    return jax.lax.stop_gradient(params["scale"] * jax.lax.rsqrt(stats["var"] + BN_EPSILON))


def _two_branched(params: Mapping[str, Any]) -> list[str]:
    """Returns the blocks that have a kxk and a 1x1, each with its BatchNorm, as RepVGG's have."""
    layers = {"conv_kxk", "bn_kxk", "conv_1x1", "bn_1x1"}
    return [block for block, tree in params.items() if tree.keys() - {"bn_identity"} == layers]


def max_norm(limit: float, frozen: Sequence[str] = ()) -> optax.GradientTransformation:
    """Returns a transformation that keeps every filter's norm at `limit` or below.

    W <- W min(1, limit / ||W||) with the norm over kernel size and inputs of an output channel, for
    kernels of convolutions [..., kh, kw, cin, cout] except those of the blocks named in `frozen`.
    It is the last of a chain: its input is taken as the step itself.
    """

    def project(updates: Any, params: Any) -> Any:
        def within(path: tuple, step: Any, param: Any) -> Any:
            if path[-1].key != "kernel" or param.ndim < 4 or path[0].key in frozen:
                return step
            moved = param + step
            norm = jnp.sqrt(jnp.sum(moved**2, axis=(-4, -3, -2), keepdims=True))
            return moved * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12)) - param

        return jax.tree_util.tree_map_with_path(within, updates, params)

    return optax.stateless(project)

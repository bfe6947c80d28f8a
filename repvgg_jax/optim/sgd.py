"""The paper's optimizer: SGD with momentum, cosine to zero, and rules by parameter name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from repvgg_jax.ops.batch_norm import BN_EPSILON

# (regular expression, value): the first to match all of `stage0_block0/conv3/kernel` wins.
NameRules = Sequence[tuple[str, float]]


def by_name(params: Any, rules: NameRules, default: float) -> Any:
    """A tree like `params` with the value of the first rule that matches each parameter's name."""

    def value(path: tuple, _: Any) -> float:
        name = "/".join(key.key for key in path)
        return next((v for pattern, v in rules if re.fullmatch(pattern, name)), default)

    return jax.tree_util.tree_map_with_path(value, params)


def cosine_schedule(
    learning_rate: float, batch_size: int, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine to 0 at `total_steps`, a value every step.

    Args:
      learning_rate: the peak for 256 images a step; it scales linearly with `batch_size` (RepVGG
        trains 256 images at 0.1, and a larger batch at an unscaled rate loses accuracy).
      batch_size: images a step over all devices.
      total_steps: of the run, the warm-up included.
      warmup_steps: of them spent rising.
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
    """SGD as RepVGG was trained with (arXiv 2101.03697, section 4.1, and the released code).

    m <- momentum m + g + weight_decay d W,  W <- W - r lr m, where d (0 if no rule matches) and r
    (1 if no rule matches) are the parameter's factors by name.

    Args:
      schedule: step -> learning rate.
      momentum, nesterov: of the trace; the paper's runs are without Nesterov.
      weight_decay: L2, added to the gradient before the momentum.
      decay_rules: name rules for d.
      rate_rules: name rules for r, such as 2 for biases.
      custom_l2: d is 0 for the kernels whose decay `custom_l2` adds to the loss.
    """

    def decay(grads: Any, params: Any) -> Any:
        factors = by_name(params, decay_rules, 0.0)
        for block, *convolutions in _two_branched(params) if custom_l2 else ():
            for name in convolutions:
                factors[block][name] = {"kernel": 0.0}
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
    """The released code's L2 of RepVGG's blocks: half of it times the decay is added to the loss.

    With t = gamma / sigma of each branch's BatchNorm, its running variance and no gradient, C the
    centre tap and R the other taps of the kxk,
      sum over blocks of |R|^2 + sum |t_k C + t_1 W_1|^2 / (t_k^2 + t_1^2),
    so that the 1x1 and the tap that it is added to decay as the one tap that they fuse to. The
    identity has no part in it. (DingXiaoH/RepVGG, `get_custom_L2`.)

    Args:
      params: of a net; blocks other than RepVGG's with kxk and 1x1 add nothing.
      batch_stats: of the same net.
    """
    total = jnp.zeros(())
    for block, kxk, one in _two_branched(params):
        layers, scales = params[block], []
        for name in (kxk, one):
            norm = name.replace("conv", "bn")
            rate = jax.lax.rsqrt(batch_stats[block][norm]["var"] + BN_EPSILON)
            scales.append(jax.lax.stop_gradient(layers[norm]["scale"] * rate))
        kernel, (k, k1) = layers[kxk]["kernel"], scales
        middle = kernel.shape[0] // 2
        centre = kernel[middle, middle]
        fused = k * centre + k1 * layers[one]["kernel"][0, 0]
        total += jnp.sum(kernel**2) - jnp.sum(centre**2) + jnp.sum(fused**2 / (k**2 + k1**2))
    return total


def _two_branched(params: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Block, its kxk and its 1x1, for the blocks that have just these, or the identity besides."""
    found = []
    for block, layers in params.items():
        names = sorted(layers.keys() - {"bn0"}) if isinstance(layers, Mapping) else []
        match = re.fullmatch(r"bn1 bn(\d+) conv1 conv\1", " ".join(names))
        if match and match[1] != "1":
            found.append((block, f"conv{match[1]}", "conv1"))
    return found


def max_norm(limit: float, frozen: Sequence[str] = ()) -> optax.GradientTransformation:
    """Holds every filter's norm at `limit` or below, after the update that comes before it.

    W <- W min(1, limit / ||W||) with the norm over kernel size and inputs of an output channel, for
    kernels of convolutions [..., kh, kw, cin, cout]. The last of a chain: what it gets is taken as
    the step itself. Blocks named in `frozen` are left alone.
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

"""RepVGG's optimizer: SGD with momentum, a cosine schedule, and rules by parameter name."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from repvgg_jax.ops.batch_norm import BN_EPSILON, per_channel

# (regular expression, value) pairs. The first expression that matches a parameter's full name, such
# as `stage0_block0/conv_kxk/kernel`, is used.
NameRules = Sequence[tuple[str, float]]


def by_name(params: Any, rules: NameRules, default: float) -> Any:
    """Returns a tree like `params` with the value of the first rule that matches each name."""

    def value(path: tuple, _: Any) -> float:
        name = "/".join(key.key for key in path)
        return next((v for pattern, v in rules if re.fullmatch(pattern, name)), default)

    return jax.tree_util.tree_map_with_path(value, params)


def cosine_schedule(
    learning_rate: float, batch_size: int, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Returns a schedule with linear warm-up from 0 and cosine decay to 0 at `total_steps`.

    Args:
      learning_rate: peak learning rate for a batch of 256 images (0.1 in RepVGG); the schedule
        scales it linearly with `batch_size`.
      batch_size: images per step over all devices.
      total_steps: number of steps, including the warm-up.
      warmup_steps: number of steps of the warm-up.

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
    """Returns the SGD optimizer of RepVGG (arXiv 2101.03697, section 4.1, and the authors' code).

    m <- momentum m + g + weight_decay d W,  W <- W - r lr m, where the factors d and r are chosen
    by parameter name.

    Args:
      schedule: learning rate as a function of the step.
      momentum: decay rate of the momentum m.
      nesterov: True for Nesterov momentum, which the paper does not use.
      weight_decay: coefficient of the L2 decay, which is added to the gradient before momentum.
      decay_rules: rules for d, which is 0 if no rule matches.
      rate_rules: rules for r, such as 2 for biases; r is 1 if no rule matches.
      custom_l2: True to set d = 0 for the kernels that the function `custom_l2` covers.
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


def custom_l2(
    params: Mapping[str, Any], batch_stats: Mapping[str, Any], epsilon: float = BN_EPSILON
) -> Array:
    """Returns the custom L2 of RepVGG's blocks; the loss adds it times weight_decay / 2.

      sum over blocks of |R|^2 + sum |t_k C + t_1 W_1|^2 / (t_k^2 + t_1^2),
    where t = gamma / sigma of the BatchNorm of each branch (with the running variance, and not
    differentiated), and C and R are the center tap and the other taps of the kxk. The center tap
    and the 1x1 are thus decayed as the one tap to which they fuse. The identity branch does not
    contribute, nor do blocks without a kxk or a 1x1 branch. (DingXiaoH/RepVGG, `get_custom_L2`.)
    """
    total = jnp.zeros(())
    for block in _two_branched(params):
        layers, stats = params[block], batch_stats[block]
        tk, t1 = (_bn_scale(layers[norm], stats[norm], epsilon) for norm in ("bn_kxk", "bn_1x1"))
        kernel = layers["conv_kxk"]["kernel"]
        middle = kernel.shape[0] // 2
        center = kernel[middle, middle]
        tk, t1 = (per_channel(t, center) for t in (tk, t1))
        fused = tk * center + t1 * layers["conv_1x1"]["kernel"][0, 0]
        total += jnp.sum(kernel**2) - jnp.sum(center**2) + jnp.sum(fused**2 / (tk**2 + t1**2))
    return total


def _bn_scale(params: Mapping[str, Array], stats: Mapping[str, Array], epsilon: float) -> Array:
    return jax.lax.stop_gradient(params["scale"] * jax.lax.rsqrt(stats["var"] + epsilon))


def _two_branched(params: Mapping[str, Any]) -> list[str]:
    """Returns the names of blocks with a kxk and a 1x1 branch that each have a BatchNorm."""
    layers = {"conv_kxk", "bn_kxk", "conv_1x1", "bn_1x1"}
    return [block for block, tree in params.items() if tree.keys() - {"bn_identity"} == layers]


def max_norm(limit: float, frozen: Sequence[str] = ()) -> optax.GradientTransformation:
    """Returns a transformation that limits the norm of every filter to `limit`.

    W <- W min(1, limit / ||W||), with the norm of each output channel's filter, for convolution
    kernels [..., kh, kw, cin, cout] except those of the blocks named in `frozen`. It must be the
    last transformation of a chain, since it takes its input as the final update.
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

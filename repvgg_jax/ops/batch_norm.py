"""Statistics of a batch: BatchNorm, and the sum of RepVGG's branches, each with its gradient.

The gradients are written out rather than derived, so that the backward pass keeps what it needs and
nothing else. Arrays of images are [groups, images, height, width, channels]; a statistic is taken
over one group. Statistics and sums are float32 or wider whatever the type of the images.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from repvgg_jax.errors import UsageError

BN_EPSILON = 1e-5


def accumulation_dtype(dtype: Any) -> Any:
    """The type for sums and logits under compute type `dtype`: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def split_into_groups(x: Array, group_size: int | None) -> Array:
    """[batch, ...] -> [groups, images of each, ...]; one group of all where no size is given.

    Raises:
      UsageError: where the batch is no whole number of groups.
    """
    size = group_size or x.shape[0]
    if x.shape[0] % size:
        raise UsageError(
            f"bn_group_size={size} does not divide {x.shape[0]} images into groups; take a "
            "divisor of the batch, or of a microbatch where gradients are accumulated"
        )
    return x.reshape(x.shape[0] // size, size, *x.shape[1:])


def mean_and_variance(x: Array) -> tuple[Array, Array]:
    """Of each group and channel, [groups, channels]."""
    wide = x.astype(accumulation_dtype(x.dtype))
    axes = tuple(range(1, x.ndim - 1))
    mean = wide.mean(axes)
    # One pass over x for both; rounding can take a constant channel's variance below zero.
    return mean, jnp.maximum((wide**2).mean(axes) - mean**2, 0.0)


def broadcast_to_images(vector: Array, x: Array) -> Array:
    """[groups, channels] so that it goes with [groups, images, height, width, channels]."""
    return vector.reshape(vector.shape[0], *(1,) * (x.ndim - 2), -1)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x: Array, gamma: Array, beta: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """gamma (x - mean) / sqrt(var + epsilon) + beta, with the mean and variance of each group.

    With d = dL/dy, n numbers in a group, r = 1 / sqrt(var + epsilon) and x' = r (x - mean):
    dL/dbeta = sum d,  dL/dgamma = sum d x',  dL/dx = gamma r (d - (sum d + x' sum d x') / n).

    Args:
      x: [groups, images, height, width, channels].
      gamma, beta: [channels].
      dtype: of y.

    Returns:
      y, and the mean and variance [groups, channels], through which no gradient flows.
    """
    return _forward_rule(x, gamma, beta, dtype)[0]


def _forward_rule(x: Array, gamma: Array, beta: Array, dtype: Any) -> tuple[Any, Any]:
    mean, var = mean_and_variance(x)
    rate = lax.rsqrt(var + BN_EPSILON)
    y = (x - broadcast_to_images(mean, x)) * broadcast_to_images(gamma * rate, x) + beta
    return (y.astype(dtype), mean, var), (x, gamma, mean, var)


def _backward_rule(dtype: Any, kept: Any, cotangents: Any) -> tuple[Array, Array, Array]:
    (x, gamma, mean, var), (dy, _, _) = kept, cotangents
    dx, dgamma, dbeta = batch_norm_gradient(x, dy, gamma, mean, var)
    return dx, dgamma.sum(0).astype(gamma.dtype), dbeta.sum(0).astype(gamma.dtype)


batch_norm.defvjp(_forward_rule, _backward_rule)


def batch_norm_gradient(
    x: Array, dy: Array, gamma: Array, mean: Array, var: Array
) -> tuple[Array, Array, Array]:
    """The gradients of x, and by group of gamma and beta, of what `batch_norm` made of x."""
    axes, count = tuple(range(1, x.ndim - 1)), x[0].size // x.shape[-1]
    wide, rate = accumulation_dtype(x.dtype), lax.rsqrt(var + BN_EPSILON)
    d = dy.astype(wide)
    dbeta = d.sum(axes)
    dgamma = ((d * x).sum(axes) - mean * dbeta) * rate
    scale = gamma * rate
    slope = jnp.where(var > 0, scale * rate * dgamma / count, 0.0)
    centred = x - broadcast_to_images(mean, x)
    dx = (d - broadcast_to_images(dbeta / count, x)) * broadcast_to_images(
        scale, x
    ) - centred * broadcast_to_images(slope, x)
    return dx.astype(x.dtype), dgamma, dbeta

"""Batch normalization in training, with a custom gradient.

The custom gradient saves only the input and its statistics for the backward pass. Images are
[groups, images, height, width, channels], and statistics are computed over each group. Statistics
and sums are float32 or wider, whatever the type of the images.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from repvgg_jax.errors import UsageError

BN_EPSILON = 1e-5

AnyArray = Array | np.ndarray  # outside of jit, nets may be applied to NumPy arrays

GroupedImages = Float[AnyArray, "groups images height width channels"]
ChannelVector = Float[Array, " channels"]
GroupStatistic = Float[Array, "groups channels"]


def accumulation_dtype(dtype: Any) -> Any:
    """Returns the type of sums and logits for the compute type `dtype`: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def split_into_groups(x: AnyArray, group_size: int | None) -> Array:
    """Reshapes [batch, ...] to [groups, images per group, ...]; None makes one group.

    Raises:
      UsageError: if the batch is not a multiple of `group_size`.
    """
    size = group_size or x.shape[0]
    if x.shape[0] % size:
        raise UsageError(
            f"bn_group_size={size} does not divide a batch of {x.shape[0]} images; use a divisor "
            "of the batch size, or of the microbatch size if gradients are accumulated"
        )
    return x.reshape(x.shape[0] // size, size, *x.shape[1:])


def mean_and_variance(x: AnyArray) -> tuple[GroupStatistic, GroupStatistic]:
    """Returns the mean and variance of each group and channel of [groups, ..., channels]."""
    wide = x.astype(accumulation_dtype(x.dtype))
    axes = tuple(range(1, x.ndim - 1))
    mean = wide.mean(axes)
    # E[x^2] - mean^2 needs one pass over x; rounding can make it negative for a constant channel.
    return mean, jnp.maximum((wide**2).mean(axes) - mean**2, 0.0)


def per_channel(vector: AnyArray, like: Any) -> Array:
    """Reshapes [channels] or [groups, channels] to broadcast against `like`, [..., channels]."""
    return vector.reshape(*vector.shape[:-1], *(1,) * (like.ndim - vector.ndim), -1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: GroupedImages,
    gamma: ChannelVector,
    beta: ChannelVector,
    dtype: Any,
    epsilon: float = BN_EPSILON,
) -> tuple[GroupedImages, GroupStatistic, GroupStatistic]:
    """Normalizes each group by its own mean and variance (Ioffe & Szegedy, arXiv 1502.03167).

    y = gamma (x - mean) / sqrt(var + epsilon) + beta. With d = dL/dy, n elements per channel of a
    group, r = 1 / sqrt(var + epsilon) and x' = r (x - mean), the gradient is

      dL/dbeta = sum d,  dL/dgamma = sum d x',  dL/dx = gamma r (d - (sum d + x' sum d x') / n).

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (1, 8, 4, 4, 3))  # one group of 8 images
      >>> y, mean, var = batch_norm(x, jnp.ones(3), jnp.zeros(3), jnp.float32)

    Returns:
      y in `dtype`, and the mean and variance [groups, channels], which are not differentiated.
    """
    return _forward_rule(x, gamma, beta, dtype, epsilon)[0]


def _forward_rule(
    x: AnyArray, gamma: Array, beta: Array, dtype: Any, epsilon: float
) -> tuple[Any, Any]:
    mean, var = mean_and_variance(x)
    scale = per_channel(per_channel(gamma, var) * lax.rsqrt(var + epsilon), x)
    y = (x - per_channel(mean, x)) * scale + per_channel(beta, x)
    return (y.astype(dtype), mean, var), (x, gamma, mean, var)


def _backward_rule(
    dtype: Any, epsilon: float, saved: Any, cotangents: Any
) -> tuple[Array, Array, Array]:
    x, gamma, mean, var = saved
    dx, dgamma, dbeta = batch_norm_gradient(x, cotangents[0], gamma, mean, var, epsilon)
    return dx, dgamma.sum(0).astype(gamma.dtype), dbeta.sum(0).astype(gamma.dtype)


batch_norm.defvjp(_forward_rule, _backward_rule)


def batch_norm_gradient(
    x: AnyArray,
    dy: AnyArray,
    gamma: ChannelVector,
    mean: GroupStatistic,
    var: GroupStatistic,
    epsilon: float = BN_EPSILON,
) -> tuple[Array, GroupStatistic, GroupStatistic]:
    """Returns the gradients of x, gamma and beta in `batch_norm`, the last two for each group."""
    axes, count = tuple(range(1, x.ndim - 1)), x[0].size // x.shape[-1]
    rsigma = lax.rsqrt(var + epsilon)
    d = dy.astype(accumulation_dtype(x.dtype))
    dbeta = d.sum(axes)
    dgamma = ((d * x).sum(axes) - mean * dbeta) * rsigma
    scale = per_channel(gamma, rsigma) * rsigma
    slope = jnp.where(var > 0, scale * rsigma * dgamma / count, 0.0)
    centered = x - per_channel(mean, x)
    dx = (d - per_channel(dbeta / count, x)) * per_channel(scale, x)
    dx -= centered * per_channel(slope, x)
    return dx.astype(x.dtype), dgamma, dbeta

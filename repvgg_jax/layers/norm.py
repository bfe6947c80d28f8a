"""BatchNorm over groups of images, with statistics in float32 or wider."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from repvgg_jax.layers.conv import Dtype
from repvgg_jax.ops.batch_norm import (
    BN_EPSILON,
    accumulation_dtype,
    batch_norm,
    per_channel,
    split_into_groups,
)

BN_MOMENTUM = 0.9  # weight of the old statistics; PyTorch's momentum is 1 minus this


class Norm(NamedTuple):
    """The parameters and running statistics of a BatchNorm."""

    gamma: Array
    beta: Array
    mean: nn.Variable
    var: nn.Variable

    def update_running(self, mean: Array, var: Array) -> None:
        """Updates the running statistics with the group mean of statistics [groups, channels]."""
        for running, value in ((self.mean, mean), (self.var, var)):
            moved = BN_MOMENTUM * running.value + (1 - BN_MOMENTUM) * value.mean(0)
            running.value = moved.astype(running.value.dtype)


class NormVariables(nn.Module):
    """The variables of a `BatchNorm` with the same name, for code that uses them directly."""

    channels: int

    @nn.compact
    def __call__(self) -> Norm:
        return norm_variables(self, self.channels)


def norm_variables(module: nn.Module, channels: int) -> Norm:
    """Creates the parameters and running statistics of a BatchNorm in `module`."""
    shape = (channels,)
    return Norm(
        module.param("scale", nn.initializers.ones, shape, jnp.float32),
        module.param("bias", nn.initializers.zeros, shape, jnp.float32),
        module.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
        module.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
    )


def local_response_norm(x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Array:
    """Returns x / (1 + alpha / size * s)^beta, where s is the sum of squares of nearby channels.

    These are the `size` channels around each channel of x [..., channels] (Krizhevsky et al. 2012,
    section 3.3, with the constants of Caffe and PyTorch).
    """
    square = jnp.square(x.astype(accumulation_dtype(x.dtype)))
    window, margins = (1,) * (x.ndim - 1), [(0, 0)] * (x.ndim - 1)
    sums = lax.reduce_window(
        square,
        0.0,
        lax.add,
        (*window, size),
        (1,) * x.ndim,
        [*margins, (size // 2, (size - 1) // 2)],
    )
    return (x / (1 + alpha / size * sums) ** beta).astype(x.dtype)


class BatchNorm(nn.Module):
    """A BatchNorm gamma (x - mean) / sqrt(var + epsilon) + beta with statistics per image group.

    Input and output are [batch, height, width, channels]. In training, each group of `group_size`
    consecutive images is normalized by its own mean and variance, and the running statistics are
    updated with the average of these over the groups. Groups are defined on the global batch, so
    the result does not depend on the number of devices. A group whose images are on one device
    needs no communication. Statistics are float32 or wider, whatever the compute type.

    Attributes:
      train: True to normalize by batch statistics and update the running statistics.
      group_size: number of images in a group; None for the whole batch.
      dtype: type of the output.
      epsilon: constant added to the variance inside the square root.

    Raises:
      UsageError: if `group_size` does not divide the batch.
    """

    train: bool
    group_size: int | None = None
    dtype: Dtype = jnp.float32
    epsilon: float = BN_EPSILON

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = norm_variables(self, x.shape[-1])
        if not self.train:
            scale = lax.rsqrt(norm.var.value + self.epsilon) * norm.gamma
            centered = x - per_channel(norm.mean.value, x)
            y = centered * per_channel(scale, x) + per_channel(norm.beta, x)
            return y.astype(self.dtype)
        images = split_into_groups(x, self.group_size)
        y, mean, var = batch_norm(images, norm.gamma, norm.beta, self.dtype, self.epsilon)
        if not self.is_initializing():
            norm.update_running(mean, var)
        return y.reshape(x.shape)

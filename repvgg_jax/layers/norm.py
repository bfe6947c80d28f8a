"""BatchNorm over groups of images, with float32 statistics."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from repvgg_jax.layers.conv import Dtype
from repvgg_jax.ops.batch_norm import BN_EPSILON, batch_norm, per_channel, split_into_groups

BN_MOMENTUM = 0.9  # weight of the old statistics; PyTorch's momentum is 1 minus this


class Norm(NamedTuple):
    """The four vectors of a BatchNorm: its parameters, and its running statistics."""

    gamma: Array
    beta: Array
    mean: nn.Variable
    var: nn.Variable

    def move(self, mean: Array, var: Array) -> None:
        """Moves the running statistics towards the mean over groups, [groups, channels]."""
        for running, value in ((self.mean, mean), (self.var, var)):
            moved = BN_MOMENTUM * running.value + (1 - BN_MOMENTUM) * value.mean(0)
            running.value = moved.astype(running.value.dtype)


class NormVariables(nn.Module):
    """The variables of a `BatchNorm` of the same name, for code that uses them directly."""

    channels: int

    @nn.compact
    def __call__(self) -> Norm:
        return norm_variables(self, self.channels)


def norm_variables(module: nn.Module, channels: int) -> Norm:
    """Returns the four vectors of a BatchNorm, as variables of the module."""
    shape = (channels,)
    return Norm(
        module.param("scale", nn.initializers.ones, shape, jnp.float32),
        module.param("bias", nn.initializers.zeros, shape, jnp.float32),
        module.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
        module.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
    )


class BatchNorm(nn.Module):
    """gamma (x - mean) / sqrt(var + epsilon) + beta over images and space, in groups of images.

    Input and output are [batch, height, width, channels]. In training, statistics are those of
    groups of `group_size` consecutive images of the batch, and the running statistics move towards
    the mean over groups of each group's mean and variance. Groups are parts of the batch, whatever
    devices hold it, so the number of devices changes nothing; groups that lie within a device need
    no communication. Statistics are float32 or wider, whatever the compute type.

    Attributes:
      train: True to use the statistics of the batch and move the running ones.
      group_size: number of images in a group; None for the whole batch.
      dtype: type of the output.

    Raises:
      UsageError: if `group_size` does not divide the batch.
    """

    train: bool
    group_size: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = norm_variables(self, x.shape[-1])
        if not self.train:
            scale = lax.rsqrt(norm.var.value + BN_EPSILON) * norm.gamma
            centered = x - per_channel(norm.mean.value, x)
            y = centered * per_channel(scale, x) + per_channel(norm.beta, x)
            return y.astype(self.dtype)
        images = split_into_groups(x, self.group_size)
        y, mean, var = batch_norm(images, norm.gamma, norm.beta, self.dtype)
        if not self.is_initializing():
            norm.move(mean, var)
        return y.reshape(x.shape)

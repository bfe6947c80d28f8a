"""BatchNorm over groups of images, with float32 statistics."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from repvgg_jax.layers.conv import Dtype
from repvgg_jax.ops.batch_norm import BN_EPSILON, batch_norm, split_into_groups

BN_MOMENTUM = 0.9  # the share of the old statistic that stays; PyTorch calls this 0.1


class Norm(NamedTuple):
    """What a BatchNorm has of each channel: its parameters, and the running statistics."""

    gamma: Array
    beta: Array
    mean: nn.Variable
    var: nn.Variable

    def move(self, mean: Array, var: Array) -> None:
        """Move the running statistics towards the mean over groups, [groups, channels]."""
        for running, value in ((self.mean, mean), (self.var, var)):
            moved = BN_MOMENTUM * running.value + (1 - BN_MOMENTUM) * value.mean(0)
            running.value = moved.astype(running.value.dtype)


class NormVariables(nn.Module):
    """Those of a `BatchNorm` of the same name, for what computes it in another way."""

    channels: int

    @nn.compact
    def __call__(self) -> Norm:
        return norm_variables(self, self.channels)


def norm_variables(module: nn.Module, channels: int) -> Norm:
    """The four vectors of a BatchNorm, as variables of the module."""
    shape = (channels,)
    return Norm(
        module.param("scale", nn.initializers.ones, shape, jnp.float32),
        module.param("bias", nn.initializers.zeros, shape, jnp.float32),
        module.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
        module.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
    )


class BatchNorm(nn.Module):
    """gamma (x - mean) / sqrt(var + epsilon) + beta over images and space, in groups of images.

    [batch, height, width, channels] in and out. In training the statistics are those of a group of
    `group_size` images that follow each other in the batch, and the running ones move towards the
    mean over groups of each group's mean and variance. As groups are parts of the batch, whatever
    devices hold it, the number of devices changes nothing; groups that lie within a device need
    nothing from the others. Statistics are float32 or wider whatever the compute type.

    Attributes:
      train: whether to use the batch's statistics, and move the running ones.
      group_size: images; the whole batch by default.
      dtype: of the output.

    Raises:
      UsageError: where the batch is no whole number of groups.
    """

    train: bool
    group_size: int | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = norm_variables(self, x.shape[-1])
        if not self.train:
            scale = lax.rsqrt(norm.var.value + BN_EPSILON) * norm.gamma
            return ((x - norm.mean.value) * scale + norm.beta).astype(self.dtype)
        images = split_into_groups(x, self.group_size)
        y, mean, var = batch_norm(images, norm.gamma, norm.beta, self.dtype)
        if not self.is_initializing():
            norm.move(mean, var)
        return y.reshape(x.shape)

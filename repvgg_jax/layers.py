"""Convolution, BatchNorm, dense layer and squeeze-and-excite: the rules that all nets share.

Padding, epsilon, momentum, initialisation and compute type are decided here and nowhere else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax, random

from repvgg_jax.convolution import convolve, on_cpus, relu
from repvgg_jax.statistics import BN_EPSILON, accumulation_dtype, in_groups, normalize

Dtype = Any

BN_MOMENTUM = 0.9  # the share of the old statistic that stays; PyTorch calls this 0.1

# Uniform within +-1/sqrt(fan_in): PyTorch's default, which RepVGG was trained from.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def fenced(x: Array) -> Array:
    """`x` after a block, which XLA's CPU backend is to make once, and its gradient once.

    Without this it makes both anew for each use, through all identity branches before it: these are
    an elementwise path through a stage. Takes effect with `compilation.compiler_options`; other
    backends know when a second time costs too much.
    """
    return lax.optimization_barrier(x) if on_cpus() else x


class Conv(nn.Module):
    """A convolution as `convolve` pads it; `kernel` [kh, kw, cin / groups, features], and `bias`.

    Attributes:
      features: output channels.
      size: of the kernel, one number or (height, width).
      strides, groups, dilation, padded, rectified, dtype, algorithm: as `convolve` has them.
      use_bias: whether a bias by channel is added.
    """

    features: int
    size: int | tuple[int, int]
    strides: int = 1
    groups: int = 1
    dilation: int = 1
    padded: bool = True
    use_bias: bool = False
    rectified: bool = False
    dtype: Dtype = jnp.float32
    algorithm: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return convolve(
            x,
            kernel,
            bias,
            strides=self.strides,
            groups=self.groups,
            dilation=self.dilation,
            padded=self.padded,
            rectified=self.rectified,
            dtype=self.dtype,
            algorithm=self.algorithm,
        )


class Kernel(nn.Module):
    """The parameter of a `Conv` of the same name, for what uses it in another way."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", kernel_init, self.shape, jnp.float32)


class IdentityConv(nn.Module):
    """A 1x1 convolution to as many channels, x + conv(x, W), which starts as the identity (W = 0).

    Its parameter `kernel` is W [1, 1, channels / groups, channels].
    """

    groups: int = 1
    dtype: Dtype = jnp.float32
    algorithm: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        shape = (1, 1, channels // self.groups, channels)
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        y = convolve(x, kernel, groups=self.groups, dtype=self.dtype, algorithm=self.algorithm)
        return x.astype(self.dtype) + y


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
        images = in_groups(x, self.group_size)
        y, mean, var = normalize(images, norm.gamma, norm.beta, self.dtype)
        if not self.is_initializing():
            norm.move(mean, var)
        return y.reshape(x.shape)


def dense(features: int, fan_in: int, *, name: str, dtype: Dtype = jnp.float32) -> nn.Dense:
    """A dense layer, kernel and bias both uniform within +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def bias_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))), the mean over all of height and width.

    [batch, height, width, channels] in and out, with `hidden` units between (arXiv 1709.01507,
    section 3). It depends on the data, so fusing leaves it as it is.
    """

    hidden: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        y = x.mean((1, 2), keepdims=True, dtype=accumulation_dtype(self.dtype))
        y = relu(dense(self.hidden, channels, name="squeeze", dtype=self.dtype)(y))
        y = dense(channels, self.hidden, name="excite", dtype=self.dtype)(y)
        return x * nn.sigmoid(y)

"""Convolution, BatchNorm, dense layer and squeeze-and-excite: the rules that all nets share.

Padding, epsilon, momentum, initialisation and compute type are decided here and nowhere else.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax, random

from repvgg_jax.errors import UsageError

Dtype = Any

BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9  # the share of the old statistic that stays; PyTorch calls this 0.1

# Uniform within +-1/sqrt(fan_in): PyTorch's default, which RepVGG was trained from.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def accumulation_dtype(dtype: Dtype) -> Dtype:
    """The type for sums and logits under compute type `dtype`: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def conv(
    features: int,
    size: int | tuple[int, int],
    *,
    name: str,
    strides: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padded: bool = True,
    use_bias: bool = False,
    dtype: Dtype = jnp.float32,
) -> nn.Conv:
    """A convolution that keeps its centre on the pixel it stands on.

    Every side is padded by `dilation * (size // 2)`. Never "SAME": at stride 2 that pads even
    inputs on one side only, which moves a 3x3's centre off the pixel that the 1x1 beside it reads,
    and the branches stop adding up to one kernel. With `padded=False` the input has its margin.
    """
    size = (size, size) if isinstance(size, int) else size
    return nn.Conv(
        features,
        size,
        strides,
        padding=_margins(size, dilation) if padded else "VALID",
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def convolve(
    x: Array, kernel: Array, *, strides: int, groups: int, dilation: int, dtype: Dtype
) -> Array:
    """What `conv` computes, with a given kernel [kh, kw, cin / groups, features]."""
    return lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        (strides, strides),
        _margins(kernel.shape[:2], dilation),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def convolve_by_matmul(x: Array, kernel: Array, *, dtype: Dtype) -> Array:
    """`convolve` at stride, groups and dilation 1, as one product of patches and kernel.

    For layers under `lax.scan`: there XLA's CPU backend takes its slow path for a convolution's
    gradient (18 ms a layer against 1.4 ms so, at 64 x 4 x 4 x 32).
    """
    kh, kw, cin, cout = kernel.shape
    height, width = x.shape[1:3]
    padded = jnp.pad(x.astype(dtype), [(0, 0), *_margins((kh, kw), 1), (0, 0)])
    shifts = [padded[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]
    patches = jnp.concatenate(shifts, axis=-1)
    return patches @ kernel.astype(dtype).reshape(kh * kw * cin, cout)


def _margins(size: tuple[int, ...], dilation: int) -> list[tuple[int, int]]:
    return [(dilation * (side // 2),) * 2 for side in size]


class IdentityConv(nn.Module):
    """A 1x1 convolution to as many channels, x + conv(x, W), which starts as the identity (W = 0).

    Its parameter `kernel` is W [1, 1, channels / groups, channels].
    """

    groups: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        shape = (1, 1, channels // self.groups, channels)
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        y = convolve(x, kernel, strides=1, groups=self.groups, dilation=1, dtype=self.dtype)
        return x.astype(self.dtype) + y


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
        shape = (x.shape[-1],)
        gamma = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        beta = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not self.train:
            mean, var = running_mean.value, running_var.value
            return self._normalize(x, mean, var, gamma, beta)
        groups = self._groups(x)
        wide = groups.astype(accumulation_dtype(x.dtype))
        axes = tuple(range(1, wide.ndim - 1))
        mean = wide.mean(axes, keepdims=True)
        # One pass over x for both; rounding can take a constant channel's variance below zero.
        var = jnp.maximum((wide**2).mean(axes, keepdims=True) - mean**2, 0.0)
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_var, var)):
                of_batch = value.reshape(-1, x.shape[-1]).mean(0)
                moved = BN_MOMENTUM * running.value + (1 - BN_MOMENTUM) * of_batch
                running.value = moved.astype(running.value.dtype)
        return self._normalize(groups, mean, var, gamma, beta).reshape(x.shape)

    def _groups(self, x: Array) -> Array:
        """[groups, images of each, ...]."""
        size = self.group_size or x.shape[0]
        if x.shape[0] % size:
            raise UsageError(
                f"bn_group_size={size} does not divide {x.shape[0]} images into groups; take a "
                "divisor of the batch, or of a microbatch where gradients are accumulated"
            )
        return x.reshape(x.shape[0] // size, size, *x.shape[1:])

    def _normalize(self, x: Array, mean: Array, var: Array, gamma: Array, beta: Array) -> Array:
        y = (x - mean) * (lax.rsqrt(var + BN_EPSILON) * gamma) + beta
        return y.astype(self.dtype)


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
        y = nn.relu(dense(self.hidden, channels, name="squeeze", dtype=self.dtype)(y))
        y = dense(channels, self.hidden, name="excite", dtype=self.dtype)(y)
        return x * nn.sigmoid(y)

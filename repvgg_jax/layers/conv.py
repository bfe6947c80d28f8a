"""Convolution layers with explicit padding and PyTorch's default initialization."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import Initializer

from repvgg_jax.ops.convolution import convolve

Dtype = Any

# Uniform in +-1/sqrt(fan_in): PyTorch's default, which the authors of RepVGG used.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """A convolution layer with `kernel` [kh, kw, cin / groups, features] and optional `bias`.

    All other attributes are as in `ops.convolution.convolve`.

    Attributes:
      features: number of output channels.
      size: side of the kernel, or (height, width).
      use_bias: True to add a bias to each output channel.
      init: initializer of the kernel.
    """

    features: int
    size: int | tuple[int, int]
    strides: int = 1
    groups: int = 1
    dilation: int = 1
    padding: str = "symmetric"
    use_bias: bool = False
    apply_relu: bool = False
    dtype: Dtype = jnp.float32
    algorithm: str = "auto"
    init: Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.init, shape, jnp.float32)
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
            padding=self.padding,
            apply_relu=self.apply_relu,
            dtype=self.dtype,
            algorithm=self.algorithm,
        )


class Kernel(nn.Module):
    """The kernel of a `Conv` with the same name, for code that uses the array directly."""

    shape: tuple[int, ...]
    init: Initializer = kernel_init

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", self.init, self.shape, jnp.float32)

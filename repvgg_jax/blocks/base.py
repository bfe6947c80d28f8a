"""What all train-time blocks share: the hyper-parameters of a plan, and convolution + BatchNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, fold_bn
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Conv, Dtype
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.ops.convolution import convolve


class Block(nn.Module):
    """A layer of a net without its nonlinearity, as the net's `plan()` describes it.

    [batch, height, width, cin] -> [batch, ceil(height / strides), ceil(width / strides), features].
    In evaluation mode a block is affine, so that it fuses to one convolution.

    Attributes:
      features: output channels.
      strides, groups: of the convolution that the block fuses to.
      kernel_size: its side, odd.
      dilation: pixels between its taps.
      dtype: compute type; parameters and statistics are float32.
      bn_group_size: images that a BatchNorm's statistics are taken over in training; all.
      conv_algorithm: what computes its convolutions, one of `convolution.ALGORITHMS`.

    Raises:
      UsageError: for an even kernel size, which has no centre.
    """

    features: int
    strides: int = 1
    groups: int = 1
    kernel_size: int = 3
    dilation: int = 1
    dtype: Dtype = jnp.float32
    bn_group_size: int | None = None
    conv_algorithm: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_size, int) or self.kernel_size % 2 != 1:
            raise UsageError(f"kernel_size={self.kernel_size!r}: only odd sizes have a centre")
        super().__post_init__()

    def conv_of(self, x: Array, suffix: str, size: int | tuple[int, int]) -> Array:
        """The block's own strides, groups and dilation at another kernel size, without bias."""
        return Conv(
            self.features,
            size,
            strides=self.strides,
            groups=self.groups,
            dilation=self.dilation,
            dtype=self.dtype,
            algorithm=self.conv_algorithm,
            name=f"conv{suffix}",
        )(x)

    def conv_with(self, x: Array, kernel: Array) -> Array:
        """The block's own convolution with a kernel that was made from its parameters."""
        return convolve(
            x,
            kernel,
            strides=self.strides,
            groups=self.groups,
            dilation=self.dilation,
            dtype=self.dtype,
            algorithm=self.conv_algorithm,
        )

    def kernel_shape(self, cin: int) -> tuple[int, int, int, int]:
        """Of the one convolution that the block is, or fuses to."""
        k = self.kernel_size
        return (k, k, cin // self.groups, self.features)

    def norm_of(self, x: Array, suffix: str, train: bool) -> Array:
        """BatchNorm."""
        return BatchNorm(train, self.bn_group_size, self.dtype, name=f"bn{suffix}")(x)

    def conv_bn(self, x: Array, suffix: str, size: int | tuple[int, int], train: bool) -> Array:
        """A branch: `conv<suffix>`, then `bn<suffix>`."""
        return self.norm_of(self.conv_of(x, suffix, size), suffix, train)

    def keeps_shape(self, cin: int) -> bool:
        """Whether an identity branch can stand beside a convolution of `cin` inputs."""
        return self.strides == 1 and cin == self.features

    def identity_shape(self) -> jax.ShapeDtypeStruct:
        """Of a kernel from the block's output channels to themselves, in its groups."""
        return jax.ShapeDtypeStruct(self.kernel_shape(self.features), jnp.float32)


def fold_branch(params: Mapping[str, Any], batch_stats: Mapping[str, Any], suffix: str) -> Affine:
    """What `Block.conv_bn` is in evaluation mode."""
    return fold_norm(Affine(params[f"conv{suffix}"]["kernel"]), params, batch_stats, suffix)


def fold_norm(
    branch: Affine, params: Mapping[str, Any], batch_stats: Mapping[str, Any], suffix: str
) -> Affine:
    """The branch followed by what `Block.norm_of` is in evaluation mode."""
    return fold_bn(branch, params[f"bn{suffix}"], batch_stats[f"bn{suffix}"])

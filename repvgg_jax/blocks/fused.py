"""The deploy form of every block: one convolution with a bias."""

from __future__ import annotations

from collections.abc import Mapping

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block
from repvgg_jax.layers.conv import Conv


class FusedConv(Block):
    """conv(x, kernel) + bias: [batch, height, width, cin] -> [batch, height / strides, ...].

    The net, whose nonlinearity follows, can have it done at once (`rectified`): then the result is
    written to memory once.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False, *, rectified: bool = False) -> Array:
        return Conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            groups=self.groups,
            dilation=self.dilation,
            use_bias=True,
            rectified=rectified,
            dtype=self.dtype,
            algorithm=self.conv_algorithm,
            name="conv",
        )(x)


def fuse_fused(block: FusedConv, params: Mapping, batch_stats: Mapping) -> Affine:
    """A fused block fuses to itself."""
    return Affine(params["conv"]["kernel"], params["conv"]["bias"])

"""ExpandNets: one convolution as a chain of linear ones (arXiv 1811.10495, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, chain
from repvgg_jax.blocks.block import Block, fold_norm
from repvgg_jax.layers import Conv

EXPANSION = 4  # the paper's r: hidden channels of each input or output


class ExpandBlock(Block):
    """BN(... conv(conv(x))): convolutions without anything between, then a BatchNorm.

    The input is padded once, by what the fused kernel needs, and no layer pads again: padding each
    would cut off what the layer before sends beyond the border, and the fused kernel sees that too.
    None has a bias, which the BatchNorm would take away.
    """

    def layers(self, cin: int) -> list[tuple[int, int, int]]:
        """(kernel size, output channels, strides) of each layer."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        margin = (self.dilation * (self.kernel_size // 2),) * 2
        y, layers = jnp.pad(x, [(0, 0), margin, margin, (0, 0)]), self.layers(x.shape[-1])
        for index, (size, features, strides) in enumerate(layers):
            y = Conv(
                features,
                size,
                strides=strides,
                groups=self.groups,
                dilation=self.dilation,
                padded=False,
                dtype=self.dtype,
                algorithm=self.conv_algorithm,
                name=f"conv{index}",
            )(y)
        return self.norm_of(y, "", train)


class ExpandCLBlock(ExpandBlock):
    """1x1 to r cin channels, kxk to r features, 1x1 to features ("CL"); r = 4.

    From images, the 1x1 keeps their three channels as the paper's first layer does.
    """

    def layers(self, cin: int) -> list[tuple[int, int, int]]:
        """(kernel size, output channels, strides) of each layer."""
        wide = cin if cin == 3 else EXPANSION * cin
        return [
            (1, wide, 1),
            (self.kernel_size, EXPANSION * self.features, self.strides),
            (1, self.features, 1),
        ]


class ExpandCKBlock(ExpandBlock):
    """A kxk as (k - 1) / 2 layers of 3x3, of r cin channels between them ("CK"); r = 4.

    A 3x3 or 1x1 has nothing to expand: it is one layer.
    """

    def layers(self, cin: int) -> list[tuple[int, int, int]]:
        """(kernel size, output channels, strides) of each layer."""
        count = max(1, self.kernel_size // 2)
        size = min(3, self.kernel_size)
        return [(size, EXPANSION * cin, 1)] * (count - 1) + [(size, self.features, self.strides)]


def fuse_expand(block: ExpandBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The layers chained in their order, then the BatchNorm."""
    count = sum(name.startswith("conv") for name in params)
    whole, *rest = (Affine(params[f"conv{index}"]["kernel"]) for index in range(count))
    for layer in rest:
        whole = chain(whole, layer, block.groups)
    return fold_norm(whole, params, batch_stats, "")

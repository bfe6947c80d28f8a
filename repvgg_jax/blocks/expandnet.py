"""ExpandNets: one convolution as a chain of linear ones (arXiv 1811.10495, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, chain
from repvgg_jax.blocks.base import Block, fold_norm
from repvgg_jax.layers.conv import Kernel

EXPANSION = 4  # the paper's r: hidden channels of each input or output


class ExpandBlock(Block):
    """BN(conv(x, W)) with W = chain(K0, K1, ...): convolutions without anything between them.

    Such layers are one convolution in training too, so that their kernels are chained at each step
    and the image is convolved once; each kernel has the gradient that it has as a layer. Layer by
    layer, x would be padded once, by what W needs: padding each layer cuts off what the one before
    sends beyond the border. No layer has a bias, which the BatchNorm would take away.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """(kernel size, output channels) of each layer."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        inputs, params = x.shape[-1], {}
        for index, (size, outputs) in enumerate(self.layers(inputs)):
            name, shape = f"conv{index}", (size, size, inputs // self.groups, outputs)
            params[name] = {"kernel": Kernel(shape, name=name)()}
            inputs = outputs
        return self.norm_of(self.conv_with(x, chained(self, params).kernel), "", train)


class ExpandCLBlock(ExpandBlock):
    """1x1 to r cin channels, kxk to r features, 1x1 to features ("CL"); r = 4.

    From images, the 1x1 keeps their three channels as the paper's first layer does.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """(kernel size, output channels) of each layer."""
        wide = cin if cin == 3 else EXPANSION * cin
        return [(1, wide), (self.kernel_size, EXPANSION * self.features), (1, self.features)]


class ExpandCKBlock(ExpandBlock):
    """A kxk as (k - 1) / 2 layers of 3x3, of r cin channels between them ("CK"); r = 4.

    A 3x3 or 1x1 has nothing to expand: it is one layer.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """(kernel size, output channels) of each layer."""
        count = max(1, self.kernel_size // 2)
        size = min(3, self.kernel_size)
        return [(size, EXPANSION * cin)] * (count - 1) + [(size, self.features)]


def chained(block: ExpandBlock, params: Mapping) -> Affine:
    """The layers as one: conv0, then conv1, and so on."""
    count = sum(name.startswith("conv") for name in params)
    layers = (Affine(params[f"conv{index}"]["kernel"]) for index in range(count))
    return reduce(partial(chain, groups=block.groups), layers)


def fuse_expand(block: ExpandBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The layers as one, with its BatchNorm folded."""
    return fold_norm(chained(block, params), params, batch_stats, "")

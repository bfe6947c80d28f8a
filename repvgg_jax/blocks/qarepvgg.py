"""QARepVGG's block (arXiv 2212.01593, section 4.3), whose fused weights quantize well."""

from __future__ import annotations

from collections.abc import Mapping

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, identity
from repvgg_jax.blocks.base import Block, fold_branch, fold_norm


class QARepVGGBlock(Block):
    """BN(BN(conv_kxk(x)) + conv_1x1(x) + x): no BatchNorm but after the kxk and after the sum.

    The identity, without parameters, exists where stride and width allow it. Squeeze-and-excite
    stands behind the block, in the net, since behind it the last BatchNorm would not fold.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self.conv_bn(x, "_kxk", self.kernel_size, train) + self.conv_of(x, "_pointwise", 1)
        if self.keeps_shape(x.shape[-1]):
            y += x
        return self.norm_of(y, "_post", train)


def fuse_qarepvgg(block: QARepVGGBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """Add the branches, then fold the BatchNorm behind the sum."""
    pointwise = params["conv_pointwise"]["kernel"]
    branches = [fold_branch(params, batch_stats, "_kxk"), Affine(pointwise)]
    if block.keeps_shape(pointwise.shape[2] * block.groups):
        branches.append(identity(block.identity_shape()))
    return fold_norm(add(*branches), params, batch_stats, "_post")

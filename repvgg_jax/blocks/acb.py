"""The asymmetric convolution block of ACNet (arXiv 1908.03930, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add
from repvgg_jax.blocks.base import Block, fold_branch


class ACBlock(Block):
    """BN(conv_kxk(x)) + BN(conv_1xk(x)) + BN(conv_kx1(x)): a kernel with a stressed skeleton."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        k = self.kernel_size
        square = self.conv_bn(x, f"{k}", k, train)
        row = self.conv_bn(x, "_row", (1, k), train)
        return square + row + self.conv_bn(x, "_column", (k, 1), train)


def fuse_acb(block: ACBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The 1xk adds to the middle row, the kx1 to the middle column."""
    suffixes = (f"{block.kernel_size}", "_row", "_column")
    return add(*(fold_branch(params, batch_stats, suffix) for suffix in suffixes))

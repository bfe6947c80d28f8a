"""MobileOne's block (arXiv 2206.04040, section 3.2): RepVGG's with several copies of the kxk."""

from __future__ import annotations

from collections.abc import Mapping

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, identity
from repvgg_jax.blocks.base import Block, fold_branch, fold_norm
from repvgg_jax.errors import UsageError


class MobileOneBlock(Block):
    """sum_i BN_i(conv_kxk_i(x)) + BN(conv_1x1(x)) + BN(x).

    The 1x1 exists beside kernels larger than itself, the identity where stride and width allow it.

    Attributes:
      copies: of the kxk branch (the paper's k).
    """

    copies: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.copies, int) or self.copies < 1:
            raise UsageError(f"copies={self.copies!r}: must be a whole number from 1 on")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = sum(self.conv_bn(x, f"_{i}", self.kernel_size, train) for i in range(self.copies))
        if self.kernel_size > 1:
            y += self.conv_bn(x, "_pointwise", 1, train)
        if self.keeps_shape(x.shape[-1]):
            y += self.norm_of(x, "_identity", train)
        return y


def fuse_mobileone(block: MobileOneBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The sum of all branches."""
    suffixes = [name.removeprefix("conv") for name in params if name.startswith("conv")]
    branches = [fold_branch(params, batch_stats, suffix) for suffix in suffixes]
    if "bn_identity" in params:
        branches.append(
            fold_norm(identity(block.identity_shape()), params, batch_stats, "_identity")
        )
    return add(*branches)

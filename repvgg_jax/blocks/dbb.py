"""The diverse branch block (arXiv 2103.13425, section 3.3) and its six transforms (section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from repvgg_jax.affine import Affine, add, average, chain, fold_bn, identity
from repvgg_jax.blocks.base import Block, fold_branch, fold_norm
from repvgg_jax.layers.conv import Conv, IdentityConv


class DiverseBranchBlock(Block):
    """BN(kxk) + BN(1x1) + BN(average(BN(1x1))) + BN(kxk(BN(1x1))).

    The 1x1 before a kxk keeps the width, and starts as the identity. What a BatchNorm before a
    window puts beyond the border is what it makes of zero, so that the border fuses too; those
    values are of the running statistics and carry no gradient. A depthwise block (groups == cin ==
    features) has no 1x1 branch, averages x itself, and doubles the width before its second kxk.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        k, cin = self.kernel_size, x.shape[-1]
        depthwise = self.groups == cin == self.features
        shared = dict(groups=self.groups, dtype=self.dtype, algorithm=self.conv_algorithm)
        pointwise = partial(Conv, size=1, **shared)
        outputs = [self.conv_bn(x, "_origin", k, train)]
        if depthwise:
            margin = self.dilation * (k // 2)
            wide = jnp.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        else:
            outputs.append(self.conv_bn(x, "_pointwise", 1, train))
            y = pointwise(self.features, name="conv_before_average")(x)
            wide = self._bordered(y, "_before_average", train)
        outputs.append(self.norm_of(self._average(wide), "_average", train))
        if depthwise:
            y = pointwise(2 * cin, name="conv_before_kxk")(x)
        else:
            y = IdentityConv(**shared, name="conv_before_kxk")(x)
        y = Conv(
            self.features,
            k,
            strides=self.strides,
            dilation=self.dilation,
            padded=False,
            **shared,
            name="conv_kxk",
        )(self._bordered(y, "_before_kxk", train))
        outputs.append(self.norm_of(y, "_kxk", train))
        return sum(outputs[1:], outputs[0])

    def _bordered(self, y: Array, suffix: str, train: bool) -> Array:
        """BN(y) with a margin of what BN makes of zero."""
        y, margin = self.norm_of(y, suffix, train), self.dilation * (self.kernel_size // 2)
        params, stats = (self.variables[c][f"bn{suffix}"] for c in ("params", "batch_stats"))
        outside = lax.stop_gradient(fold_bn(Affine(jnp.zeros(())), params, stats).bias)
        batch, height, width, channels = y.shape
        shape = (batch, height + 2 * margin, width + 2 * margin, channels)
        wide = jnp.broadcast_to(outside.astype(y.dtype), shape)
        return wide.at[:, margin : margin + height, margin : margin + width].set(y)

    def _average(self, wide: Array) -> Array:
        k, step, gap = self.kernel_size, self.strides, self.dilation
        total = lax.reduce_window(
            wide, 0.0, lax.add, (1, k, k, 1), (1, step, step, 1), "VALID", None, (1, gap, gap, 1)
        )
        return total / k**2


def fuse_dbb(block: DiverseBranchBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """Fold each BatchNorm, chain the two-layer branches, add."""

    def fold(suffix: str) -> Affine:
        return fold_branch(params, batch_stats, suffix)

    averaged = fold_norm(average(block.identity_shape()), params, batch_stats, "_average")
    branches = [fold("_origin")]
    if "conv_pointwise" in params:
        branches.append(fold("_pointwise"))
        averaged = chain(fold("_before_average"), averaged, block.groups)
    branches.append(averaged)
    before = Affine(params["conv_before_kxk"]["kernel"])
    if "conv_pointwise" in params:
        before = add(before, identity(before.kernel))
    before = fold_norm(before, params, batch_stats, "_before_kxk")
    branches.append(chain(before, fold("_kxk"), block.groups))
    return add(*branches)

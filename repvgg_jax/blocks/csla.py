"""Constant-scale linear addition, the counterpart of RepOptimizer (arXiv 2205.15242, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, identity
from repvgg_jax.blocks.base import Block, fold_norm


class CSLABlock(Block):
    """BN(s conv_kxk(x) + t conv_1x1(x) + u x), with s, t and u vectors over the output channels.

    The identity exists where stride and width allow it. With s, t and u trained this is the paper's
    hyper-search, but that all start as 1 here (there s and t as sqrt(2 / l) in a stage's l-th
    layer); with s and t constant its training equals that of one plain convolution whose gradient
    is multiplied (`repvgg_jax.optim.repoptimizer`).
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def scaled(y: Array, suffix: str) -> Array:
            scale = self.param(
                f"scale_{suffix}", nn.initializers.ones, (self.features,), jnp.float32
            )
            return y * scale.astype(y.dtype)

        y = scaled(self.conv_of(x, "_kxk", self.kernel_size), "kxk")
        y += scaled(self.conv_of(x, "_pointwise", 1), "pointwise")
        if self.keeps_shape(x.shape[-1]):
            y += scaled(x, "identity").astype(y.dtype)
        return self.norm_of(y, "", train)


def csla_kernel(block: CSLABlock, params: Mapping) -> Array:
    """s K + t pad(K1) + u I: the kernel that stands before the BatchNorm."""
    branches = [
        Affine(params["conv_kxk"]["kernel"] * params["scale_kxk"]),
        Affine(params["conv_pointwise"]["kernel"] * params["scale_pointwise"]),
    ]
    if "scale_identity" in params:
        eye = identity(block.identity_shape())
        branches.append(Affine(eye.kernel * params["scale_identity"]))
    return add(*branches).kernel


def fuse_csla(block: CSLABlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The sum of the scaled branches, then the BatchNorm."""
    return fold_norm(Affine(csla_kernel(block, params)), params, batch_stats, "")

"""Dirac weight parameterization (arXiv 1706.00388, section 2), and RepVGG's simplest form of it."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, fold_norm
from repvgg_jax.layers.conv import kernel_init


class DiracBlock(Block):
    """BN(conv(x, W)) with W = alpha delta + beta K / ||K||, alpha and beta by output channel.

    delta hands the first min(cin, features) channels of each group on, at any stride and width (the
    paper's nets have neither), and ||K|| is the norm of an output channel's filter. alpha starts
    as 1, beta as 0.1; neither is decayed. The BatchNorm's scale starts as 1
    (there uniformly between 0 and 1).
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        shape = self.kernel_shape(x.shape[-1])
        params = {
            "kernel": self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32),
            "alpha": self.param("alpha", nn.initializers.ones, shape[-1:], jnp.float32),
            "beta": self.param("beta", nn.initializers.constant(0.1), shape[-1:], jnp.float32),
        }
        return self.norm_of(self.conv_with(x, dirac_kernel(self, params)), "", train)


class TrivialBlock(Block):
    """BN(conv(x, W)) with W = delta + K (RepVGG, arXiv 2101.03697, section 4.2, "trivial")."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        kernel = self.param("kernel", kernel_init, self.kernel_shape(x.shape[-1]), jnp.float32)
        return self.norm_of(self.conv_with(x, kernel + delta(kernel, self.groups)), "", train)


def delta(like: Array, groups: int) -> Array:
    """The kernel that hands each group's first channels on."""
    kh, kw, inputs, features = like.shape
    outputs = features // groups
    within = jnp.arange(features) % outputs  # an output's place in its group
    taps = (jnp.arange(inputs)[:, None] == within).astype(like.dtype)
    return jnp.zeros(like.shape, like.dtype).at[kh // 2, kw // 2].set(taps)


def dirac_kernel(block: DiracBlock, params: Mapping) -> Array:
    """W of a block's parameters."""
    kernel = params["kernel"]
    square = (kernel**2).sum((0, 1, 2))
    # Where a filter is all zero the root has no gradient, and the filter no direction.
    norm = jnp.sqrt(jnp.maximum(square, 1e-24))
    return params["alpha"] * delta(kernel, block.groups) + params["beta"] * kernel / norm


def fuse_dirac(block: DiracBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The kernel made once, with its BatchNorm folded."""
    return fold_norm(Affine(dirac_kernel(block, params)), params, batch_stats, "")


def fuse_trivial(block: TrivialBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The kernel made once, with its BatchNorm folded."""
    kernel = params["kernel"] + delta(params["kernel"], block.groups)
    return fold_norm(Affine(kernel), params, batch_stats, "")

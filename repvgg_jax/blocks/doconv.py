"""Depthwise over-parameterized convolution, DO-Conv (arXiv 2006.12030, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, fold_norm
from repvgg_jax.layers.conv import kernel_init


class DOConvBlock(Block):
    """BN(conv(x, W)) with W[t, i, o] = sum_s (I + D)[i, t, s] K[s, i, o] over taps t.

    Each input channel has a square matrix of its own over the k^2 taps, which starts as the
    identity (D = 0). A 1x1 has a single tap, and no D. In groups an output's matrices are those of
    the inputs that it really reads.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        cin, taps = x.shape[-1], self.kernel_size**2
        params = {"kernel": self.param("kernel", kernel_init, self.kernel_shape(cin), jnp.float32)}
        if taps > 1:
            zeros = nn.initializers.zeros
            params["depthwise_kernel"] = self.param(
                "depthwise_kernel", zeros, (cin, taps, taps), jnp.float32
            )
        return self.norm_of(self.conv_with(x, doconv_kernel(self, params)), "", train)


def doconv_kernel(block: DOConvBlock, params: Mapping) -> Array:
    """W of a block's parameters."""
    kernel, groups = params["kernel"], block.groups
    if "depthwise_kernel" not in params:
        return kernel
    k, _, inputs, features = kernel.shape
    taps = k * k
    matrices = params["depthwise_kernel"] + jnp.eye(taps, dtype=kernel.dtype)
    matrices = matrices.reshape(groups, inputs, taps, taps)
    kernel = kernel.reshape(taps, inputs, groups, features // groups)
    return jnp.einsum("gits,sigo->tigo", matrices, kernel).reshape(k, k, inputs, features)


def fuse_doconv(block: DOConvBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The kernel made once, with its BatchNorm folded."""
    return fold_norm(Affine(doconv_kernel(block, params)), params, batch_stats, "")

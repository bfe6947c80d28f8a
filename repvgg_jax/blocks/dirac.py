"""Dirac weight parameterization (arXiv 1706.00388, section 2) and RepVGG's "trivial" version."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.blocks.base import KernelArray, KernelBlock, Variables
from repvgg_jax.ops.batch_norm import per_channel


class DiracBlock(KernelBlock):
    """The block BN(conv(x, W)) with W = alpha delta + beta K / ||K||.

    alpha and beta are vectors over output channels, initialized to 1 and 0.1, without weight decay.
    ||K|| is the norm of each output channel's filter. delta is the kernel that copies the first
    min(cin, features) channels of each group, for any stride and number of channels. The
    BatchNorm's scale is initialized to 1 (in the paper, uniformly between 0 and 1).
    """

    def declare(self, cin: int) -> dict[str, Any]:
        """Creates K (`conv_kxk`), alpha and beta."""
        init, shape = nn.initializers, (self.features,)
        return {
            "conv_kxk": self.declare_kernel("kxk", self.kernel_shape(cin), init.he_normal()),
            "alpha": self.param("alpha", init.ones, shape, jnp.float32),
            "beta": self.param("beta", init.constant(0.1), shape, jnp.float32),
        }

    def kernel(self, params: Variables) -> KernelArray:
        """Returns alpha delta + beta K / ||K||."""
        kernel = params["conv_kxk"]["kernel"]
        square = (kernel**2).sum((0, 1, 2))
        # The square root is not differentiable if all weights of a filter are zero.
        norm = jnp.sqrt(jnp.maximum(square, 1e-24))
        alpha, beta, norm = (
            per_channel(vector, kernel) for vector in (params["alpha"], params["beta"], norm)
        )
        return alpha * delta(kernel, self.groups) + beta * kernel / norm


class TrivialBlock(KernelBlock):
    """The block BN(conv(x, W)) with W = delta + K ("trivial" in arXiv 2101.03697, section 4.2)."""

    def declare(self, cin: int) -> dict[str, Any]:
        """Creates K (`conv_kxk`)."""
        return {"conv_kxk": self.declare_kernel("kxk", self.kernel_shape(cin))}

    def kernel(self, params: Variables) -> KernelArray:
        """Returns K + delta."""
        kernel = params["conv_kxk"]["kernel"]
        return kernel + delta(kernel, self.groups)


def delta(like: KernelArray, groups: int) -> KernelArray:
    """Returns a kernel with the shape of `like` that copies the first channels of each group."""
    kh, kw, inputs, features = like.shape
    outputs = features // groups
    within = jnp.arange(features) % outputs  # an output's position in its group
    taps = (jnp.arange(inputs)[:, None] == within[None]).astype(like.dtype)
    return jnp.zeros(like.shape, like.dtype).at[kh // 2, kw // 2].set(taps)

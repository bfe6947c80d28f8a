"""Depthwise over-parameterized convolution, DO-Conv (arXiv 2006.12030, section 3)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.blocks.base import KernelArray, KernelBlock, Variables


class DOConvBlock(KernelBlock):
    """BN(conv(x, W)) with W[t, i, o] = sum_s (I + D)[i, t, s] K[s, i, o] over taps t.

    Each input channel has its own square matrix over the k^2 taps, which starts as the identity
    (D = 0). A 1x1 kernel has a single tap, and no D. In groups, an output's matrices are those of
    the inputs that it reads.
    """

    def declare(self, cin: int) -> dict[str, Any]:
        """Creates K (`conv_kxk`) and D (`depthwise_kernel`)."""
        params: dict[str, Any] = {"conv_kxk": self.declare_kernel("kxk", self.kernel_shape(cin))}
        taps = self.kernel_size**2
        if taps > 1:
            shape = (cin, taps, taps)
            params["depthwise_kernel"] = self.param(
                "depthwise_kernel", nn.initializers.zeros, shape, jnp.float32
            )
        return params

    def kernel(self, params: Variables) -> KernelArray:
        """Returns K with each input channel's taps multiplied by its matrix I + D."""
        kernel = params["conv_kxk"]["kernel"]
        if "depthwise_kernel" not in params:
            return kernel
        k, _, inputs, features = kernel.shape
        taps = k * k
        matrices = params["depthwise_kernel"] + jnp.eye(taps, dtype=kernel.dtype)[None]
        matrices = matrices.reshape(self.groups, inputs, taps, taps)
        kernel = kernel.reshape(taps, inputs, self.groups, features // self.groups)
        return jnp.einsum("gits,sigo->tigo", matrices, kernel).reshape(k, k, inputs, features)

"""Depthwise over-parameterized convolution, DO-Conv (arXiv 2006.12030, section 3)."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.blocks.base import KernelArray, KernelBlock, Variables


class DOConvBlock(KernelBlock):
    """The block BN(conv(x, W)) with W[t, i, o] = sum_s (I + D)[i, t, s] K[s, i, o].

    Each input channel i has a square matrix I + D[i] over the k^2 kernel taps; D is initialized to
    zero. A 1x1 kernel has a single tap and no D. In a grouped convolution, an output channel uses
    the matrices of the input channels in its group.
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
        """Returns K, with the taps of each input channel multiplied by its matrix I + D."""
        kernel = params["conv_kxk"]["kernel"]
        if "depthwise_kernel" not in params:
            return kernel
        k, _, inputs, features = kernel.shape
        taps = k * k
        matrices = params["depthwise_kernel"] + jnp.eye(taps, dtype=kernel.dtype)[None]
        matrices = matrices.reshape(self.groups, inputs, taps, taps)
        kernel = kernel.reshape(taps, inputs, self.groups, features // self.groups)
        return jnp.einsum("gits,sigo->tigo", matrices, kernel).reshape(k, k, inputs, features)

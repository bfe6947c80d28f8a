"""Squeeze-and-excitation (arXiv 1709.01507)."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.layers.conv import Dtype
from repvgg_jax.layers.dense import dense
from repvgg_jax.ops.batch_norm import accumulation_dtype


class SqueezeExcite(nn.Module):
    """The layer x * sigmoid(W2 f(W1 mean(x))), where the mean is over height and width.

    Input and output are [batch, height, width, channels]; W1 has `hidden` outputs and f is the
    `activation`, ReLU in arXiv 1709.01507, section 3. The layer is not affine, so fusion leaves it
    unchanged.
    """

    hidden: int
    dtype: Dtype = jnp.float32
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        y = x.mean((1, 2), keepdims=True, dtype=accumulation_dtype(self.dtype))
        y = self.activation(dense(self.hidden, channels, name="squeeze", dtype=self.dtype)(y))
        y = dense(channels, self.hidden, name="excite", dtype=self.dtype)(y)
        return x * nn.sigmoid(y)

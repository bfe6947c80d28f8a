"""Dense layers with PyTorch's default initialization."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, random

from repvgg_jax.layers.conv import Dtype, kernel_init


def dense(
    features: int, fan_in: int, *, name: str, dtype: Dtype = jnp.float32, use_bias: bool = True
) -> nn.Dense:
    """Returns a dense layer whose kernel and bias are uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def bias_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(
        features, use_bias, dtype, kernel_init=kernel_init, bias_init=bias_init, name=name
    )

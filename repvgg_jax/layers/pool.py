"""Pooling with symmetric padding, as in PyTorch."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array


def max_pool(x: Array, size: int, strides: int) -> Array:
    """Returns the maxima of `size` x `size` windows of images [batch, height, width, channels].

    The images are padded on each side by (size - 1) // 2 pixels that are never the maximum, so that
    a window of odd size and stride 2 halves height and width, rounded up.
    """
    padding = (size - 1) // 2
    return nn.max_pool(x, (size, size), (strides, strides), [(padding, padding)] * 2)


def adaptive_mean_pool(x: Array, size: int) -> Array:
    """Returns means over `size` x `size` regions of images [batch, height, width, channels].

    Region i of n of an axis of length m has elements floor(i m / n) to ceil((i + 1) m / n) - 1, as
    in PyTorch's `AdaptiveAvgPool2d`, so regions overlap or repeat elements if n does not divide m.
    """
    rows, columns = (_regions(side, size).astype(x.dtype) for side in x.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns)


def _regions(length: int, count: int) -> np.ndarray:
    """Returns weights [count, length] of the elements of each region, which add up to 1."""
    weights = np.zeros((count, length))
    for index in range(count):
        start, end = index * length // count, -(-(index + 1) * length // count)
        weights[index, start:end] = 1 / (end - start)
    return weights

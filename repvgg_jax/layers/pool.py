"""Pooling with the paddings of PyTorch and TensorFlow."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from repvgg_jax.errors import SmallImageError
from repvgg_jax.ops.batch_norm import accumulation_dtype


def max_pool(x: Array, size: int, strides: int, padding: str = "symmetric") -> Array:
    """Returns the maxima of `size` x `size` windows of images [batch, height, width, channels].

    Padding is never the maximum. "symmetric" pads each side by (size - 1) // 2 pixels, so that a
    window of odd size and stride 2 halves height and width, rounded up. "last" pads the last rows
    and columns until each pixel is in a window, which is `ceil_mode` in PyTorch. "SAME" and "VALID"
    are those of JAX.
    """
    margins: str | list[tuple[int, int]] = padding
    if padding == "symmetric":
        margins = [((size - 1) // 2,) * 2] * 2
    elif padding == "last":
        margins = [(0, (size - side) % strides) for side in x.shape[1:3]]
    return nn.max_pool(x, (size, size), (strides, strides), margins)


def check_pixels(x: Array) -> None:
    """Raises SmallImageError if a map [batch, height, width, channels] has no pixels."""
    height, width = x.shape[1:3]
    if 0 in (height, width):
        raise SmallImageError(f"a map of {height}x{width} pixels is left")


def halved(x: Array, pool: Callable[..., Array]) -> Array:
    """Returns `pool` (`nn.max_pool`, `nn.avg_pool`) of 2x2 windows; an odd last row is dropped.

    Raises:
      SmallImageError: if the map has a single row or column.
    """
    height, width = x.shape[1:3]
    if height < 2 or width < 2:  # each by itself, since sides may be symbolic
        raise SmallImageError(f"a map of {height}x{width} pixels cannot be halved")
    return pool(x, (2, 2), (2, 2))


def adaptive_mean_pool(x: Array, size: int) -> Array:
    """Returns means over `size` x `size` regions of images [batch, height, width, channels].

    Region i of n of an axis of length m has elements floor(i m / n) to ceil((i + 1) m / n) - 1, as
    in PyTorch's `AdaptiveAvgPool2d`, so regions overlap or repeat elements if n does not divide m.

    Raises:
      SmallImageError: if the map has no pixels.
    """
    check_pixels(x)
    wide = accumulation_dtype(x.dtype)
    rows, columns = (_regions(side, size).astype(wide) for side in x.shape[1:3])
    means = jnp.einsum("bhwc,ih,jw->bijc", x.astype(wide), rows, columns, precision="highest")
    return means.astype(x.dtype)


def _regions(length: int, count: int) -> np.ndarray:
    """Returns weights [count, length] of the elements of each region, which add up to 1."""
    weights = np.zeros((count, length))
    for index in range(count):
        start, end = index * length // count, -(-(index + 1) * length // count)
        weights[index, start:end] = 1 / (end - start)
    return weights

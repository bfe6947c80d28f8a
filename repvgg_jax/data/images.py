"""Normalization of uint8 images to network input."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Shaped, UInt8


def normalize(
    images: UInt8[Array, "... channels"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "... channels"]:
    """Returns (images / 255 - mean) / std in float32.

    Args:
      images: uint8 [..., 3].
      mean: mean of each channel, on a scale from 0 to 1.
      std: standard deviation of each channel, on a scale from 0 to 1.
    """
    scaled = jnp.asarray(images).astype(jnp.float32) / 255
    shape = (1,) * (scaled.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, std))
    return (scaled - center) / scale


def to_network_input(
    images: Shaped[Array, "batch height width channels"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "batch height width channels"]:
    """Returns normalized images; floating-point images are returned unchanged."""
    return normalize(images, mean, std) if images.dtype == jnp.uint8 else images

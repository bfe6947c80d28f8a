"""Pixel values: normalization constants, and uint8 images as the network takes them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images / 255 - mean) / std.

    Args:
      images: uint8 [..., 3].
      mean, std: of the three channels, on the scale 0..1.

    Returns:
      float32, the shape of `images`.
    """
    scaled = jnp.asarray(images).astype(jnp.float32) / 255
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def to_network_input(
    images: Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "batch height width channels"]:
    """What a net takes: uint8 pixels are normalised here, floating images are taken as they are."""
    return normalize(images, mean, std) if images.dtype == jnp.uint8 else images

"""Mixup and CutMix: images and targets of a batch, mixed on the device."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, random

from repvgg_jax.errors import UsageError


def mix(
    key: Array, images: Array, targets: Array, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Array, Array]:
    """Mix each image with its neighbour in the batch, and their targets in the same proportion.

    With lambda ~ Beta(alpha, alpha), one a batch: mixup gives lambda x + (1 - lambda) x' (arXiv
    1710.09412, section 2); CutMix pastes into x a box of x' of 1 - lambda of the area, and lambda
    becomes the share that is left (arXiv 1905.04899, section 3.1). Where both are given each
    batch takes one of them. The neighbour, 2i for 2i + 1 and the reverse, is any other image, as
    batches are shuffled, and lies on the same device.

    Args:
      key: of this step.
      images: normalised [batch, height, width, 3].
      targets: distributions over classes [batch, classes].
      mixup, cutmix: each one's alpha; 0 for none.

    Returns:
      images and targets, as they came where neither is given.

    Raises:
      UsageError: where the batch has an odd number of images, one of which had no neighbour.
    """
    if not (mixup or cutmix):
        return images, targets
    if len(images) % 2:
        raise UsageError(
            f"mixup and cutmix mix pairs of images: a batch of {len(images)} must be even"
        )
    which, lam_key, box_key = random.split(key, 3)
    cut = random.bernoulli(which, 0.5) if mixup and cutmix else jnp.bool_(cutmix > 0)
    alpha = jnp.where(cut, cutmix, mixup)
    lam = random.beta(lam_key, alpha, alpha)
    outside = 1 - _box(box_key, images.shape[1:3], lam)
    weight = jnp.where(cut, outside, lam)[..., None]
    mixed = weight * images + (1 - weight) * _neighbours(images)
    share = weight.mean()
    return mixed.astype(images.dtype), share * targets + (1 - share) * _neighbours(targets)


def _neighbours(rows: Array) -> Array:
    """Rows 1, 0, 3, 2, ...: pairs, so that nothing crosses from one device to another."""
    pairs = rows.reshape(len(rows) // 2, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def _box(key: Array, size: tuple[int, int], lam: Array) -> Array:
    """1 inside a box of 1 - lambda of the area about a random centre, cut at the border [h, w]."""
    centre = random.uniform(key, (2,))
    half = jnp.sqrt(1 - lam) / 2

    def span(length: int, middle: Array) -> Array:
        pixels = jnp.arange(length)
        low = jnp.round((middle - half) * length)
        high = jnp.round((middle + half) * length)
        return (pixels >= low) & (pixels < high)

    rows, columns = (span(length, middle) for length, middle in zip(size, centre, strict=True))
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)

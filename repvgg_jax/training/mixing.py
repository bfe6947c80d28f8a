"""Mixup and CutMix of a batch, on the device."""

import jax.numpy as jnp
from jax import Array, random

from repvgg_jax.errors import UsageError


def mix(
    key: Array, images: Array, targets: Array, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Array, Array]:
    """Mixes each image with its neighbor in the batch, and their targets in the same proportion.

    One lambda ~ Beta(alpha, alpha) is drawn for each batch. Mixup gives
    lambda x + (1 - lambda) x' (arXiv 1710.09412, section 2). CutMix pastes a box of x' with
    1 - lambda of the area into x, and lambda becomes the share of x that remains (arXiv 1905.04899,
    section 3.1). If both are given, each batch uses one of them at random. Images 2i and 2i + 1 are
    neighbors: they are a random pair, since batches are shuffled, and on the same device.

    Args:
      key: PRNG key of the step.
      images: normalized images [batch, height, width, 3].
      targets: distributions over classes [batch, classes].
      mixup: alpha of mixup; 0 for no mixup.
      cutmix: alpha of CutMix; 0 for no CutMix.

    Returns:
      Mixed images and targets; the inputs if both alphas are 0.

    Raises:
      UsageError: if the batch has an odd number of images.
    """
    if not (mixup or cutmix):
        return images, targets
    if len(images) % 2:
        raise UsageError(
            f"mixup and cutmix mix pairs of images: the batch size, {len(images)}, must be even"
        )
    which, lam_key, box_key = random.split(key, 3)
    cut = random.bernoulli(which, 0.5) if mixup and cutmix else jnp.bool_(cutmix > 0)
    alpha = jnp.where(cut, cutmix, mixup)
    lam = random.beta(lam_key, alpha, alpha)
    outside = 1 - _box(box_key, images.shape[1:3], lam)
    weight = jnp.where(cut, outside, lam)[..., None][None]
    mixed = weight * images + (1 - weight) * _neighbors(images)
    share = weight.mean()
    return mixed.astype(images.dtype), share * targets + (1 - share) * _neighbors(targets)


def _neighbors(rows: Array) -> Array:
    """Returns rows 1, 0, 3, 2, ...; swapping within pairs moves no row to another device."""
    pairs = rows.reshape(len(rows) // 2, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def _box(key: Array, size: tuple[int, int], lam: Array) -> Array:
    """Returns a mask [h, w]: 1 in a randomly centered, clipped box of 1 - lambda of the area."""
    center = random.uniform(key, (2,))
    half = jnp.sqrt(1 - lam) / 2

    def span(length: int, middle: Array) -> Array:
        pixels = jnp.arange(length)
        low = jnp.round((middle - half) * length)
        high = jnp.round((middle + half) * length)
        return (pixels >= low) & (pixels < high)

    rows, columns = (span(length, middle) for length, middle in zip(size, center, strict=True))
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)

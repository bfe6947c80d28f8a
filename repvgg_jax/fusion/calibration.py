"""Means of a function over calibration batches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from repvgg_jax.errors import UsageError
from repvgg_jax.ops.algorithms import Batches


def mean_over_images(of_batch: Callable[..., Any], batches: Batches, if_none: str) -> Any:
    """Returns the mean of `of_batch(images)` over batches, weighted by their numbers of images.

    Args:
      of_batch: function of a batch that returns a tree of arrays.
      batches: batches of images, perhaps of different sizes.
      if_none: message of the error.

    Raises:
      UsageError: if there are no images.
    """
    total, count = None, 0
    for images in batches:
        weighted = jax.tree.map(partial(jnp.multiply, len(images)), of_batch(images))
        total = weighted if total is None else jax.tree.map(jnp.add, total, weighted)
        count += len(images)
    if not count:
        raise UsageError(if_none)
    return jax.tree.map(lambda leaf: leaf / count, total)

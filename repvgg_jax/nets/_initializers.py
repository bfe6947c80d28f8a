"""How the convolutions and BatchNorms of RepVGG's block start, by name."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import Array
from jax.nn.initializers import Initializer

from repvgg_jax.layers.conv import kernel_init


class Start(NamedTuple):
    """Initializers of kernels [kh, kw, cin / groups, features] and of BatchNorms [features]."""

    kernel: Initializer
    scale: Initializer = nn.initializers.ones
    bias: Initializer = nn.initializers.zeros


def _tenths(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 0.1 + 0.1 * jax.random.normal(key, shape, dtype)


# Groups of a layer -> how it starts. Variances of kernels, with fan_in = kh kw cin / groups and
# fan_out = kh kw features / groups:
INITIALIZERS: dict[str, Callable[[int], Start]] = {
    # 1 / (3 fan_in), uniform: PyTorch's, which the authors' code leaves as it is.
    "default": lambda groups: Start(kernel_init),
    # 1 / fan_in: Flax's.
    "lecun": lambda groups: Start(nn.initializers.lecun_normal()),
    # 2 / fan_in: He et al. (arXiv 1502.01852), for what goes into a ReLU.
    "he": lambda groups: Start(nn.initializers.he_normal()),
    # 2 / fan_out, and BatchNorms of scale N(0.1, 0.1^2) and bias N(0, 0.1^2): timm's RepVGG.
    "timm": lambda groups: Start(
        nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal"),
        _tenths,
        nn.initializers.normal(0.1),
    ),
}


def draw_again(
    params: Mapping[str, Any], plan: Mapping[str, Mapping[str, Any]], name: str, key: Array
) -> dict[str, Any]:
    """Parameters in which the plan's blocks start by an initializer; all others stay.

    Args:
      params: of RepVGG's blocks, as the net's `init` gives them.
      plan: of the net.
      name: one of `INITIALIZERS`.
      key: a `jax.random.key`; each leaf's own follows from it and the leaf's path.
    """

    def draw(path: tuple[str, ...], leaf: Array) -> Array:
        if path[0] not in plan:
            return leaf
        start = INITIALIZERS[name](plan[path[0]].get("groups", 1))._asdict()
        own = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        return start[path[-1]](own, leaf.shape, leaf.dtype)

    return traverse_util.path_aware_map(draw, params)

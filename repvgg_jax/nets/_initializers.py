"""Named initializers of the convolutions and BatchNorms of blocks `repvgg` and `plain`."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import Array
from jax.nn.initializers import Initializer

from repvgg_jax.layers.conv import kernel_init
from repvgg_jax.nets._spec import BlockSpec


class Initializers(NamedTuple):
    """Initializers of kernels [kh, kw, cin / groups, features] and of BatchNorms [features]."""

    kernel: Initializer
    scale: Initializer = nn.initializers.ones
    bias: Initializer = nn.initializers.zeros


def _tenths(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 0.1 + 0.1 * jax.random.normal(key, shape, dtype)


# Functions from a layer's number of groups to its initializers. The comments give the kernels'
# variance, with fan_in = kh kw cin / groups and fan_out = kh kw features / groups.
INITIALIZERS: dict[str, Callable[[int], Initializers]] = {
    # 1 / (3 fan_in), uniform: PyTorch's default, which the authors' code uses.
    "default": lambda groups: Initializers(kernel_init),
    # 1 / fan_in: Flax's default.
    "lecun": lambda groups: Initializers(nn.initializers.lecun_normal()),
    # 2 / fan_in: He et al. (arXiv 1502.01852), for layers before a ReLU.
    "he": lambda groups: Initializers(nn.initializers.he_normal()),
    # 2 / fan_out; BatchNorm scales N(0.1, 0.1^2) and biases N(0, 0.1^2): timm's RepVGG.
    "timm": lambda groups: Initializers(
        nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal"),
        _tenths,
        nn.initializers.normal(0.1),
    ),
}


def redraw(
    params: Mapping[str, Any], plan: Iterable[BlockSpec], name: str, key: Array
) -> dict[str, Any]:
    """Returns the parameters, with those of the plan's blocks drawn by the named initializer.

    The random key of each leaf is derived from `key` and the leaf's path.
    """
    groups = {spec.name: spec.groups for spec in plan}

    def draw(path: tuple[str, ...], leaf: Array) -> Array:
        if path[0] not in groups:
            return leaf
        initializers = INITIALIZERS[name](groups[path[0]])._asdict()
        leaf_key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        return initializers[path[-1]](leaf_key, leaf.shape, leaf.dtype)

    return traverse_util.path_aware_map(draw, params)

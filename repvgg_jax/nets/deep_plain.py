"""Deep plain nets without BatchNorm or branches: what initialisation alone can train.

Delta-orthogonal kernels (arXiv 1806.05393, section 3) make a tanh net of any depth an isometry at
the start; a max-norm constraint with LeakyReLU (`optim.max_norm`) is the field's other road.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Conv, Dtype, kernel_init
from repvgg_jax.layers.dense import dense
from repvgg_jax.nets._chain import check_whole
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.ops.convolution import convolve_by_matmul

SLOPE = 0.3  # of leaky_relu below zero


class Activation(NamedTuple):
    """A nonlinearity, and the gain of the kernels under which it keeps a signal's variance."""

    function: Callable[[Array], Array]
    gain: float


ACTIVATIONS = {
    "tanh": Activation(nn.tanh, 1.0),
    "relu": Activation(nn.relu, 2**0.5),
    "leaky_relu": Activation(
        partial(nn.leaky_relu, negative_slope=SLOPE), (2 / (1 + SLOPE**2)) ** 0.5
    ),
}
# Cells a side that the head reads: at the start no layer looks at a pixel's neighbours.
GRID = 4
INITIALIZERS: dict[str, Callable[[float], nn.initializers.Initializer]] = {
    "delta_orthogonal": nn.initializers.delta_orthogonal,
    "default": lambda gain: kernel_init,
    "he": lambda gain: nn.initializers.he_normal(),
}


def grid_means(x: Array, cells: int) -> Array:
    """[batch, height, width, c] -> [batch, cells^2 c]: the means of a grid of cells.

    Cells overlap by a pixel where the map does not divide, and repeat where it is smaller.
    """
    rows, columns = (
        [slice(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
        for side in x.shape[1:3]
    )
    return jnp.concatenate([x[:, r, c].mean((1, 2)) for r in rows for c in columns], axis=-1)


class SquareConv(nn.Module):
    """A 3x3 convolution with a bias, of stride 1 and to as many channels."""

    kernel_init: nn.initializers.Initializer
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return convolve_by_matmul(x, kernel, dtype=self.dtype) + bias.astype(self.dtype)


class DeepPlain(nn.Module):
    """A stem of stride 2, `depth` 3x3 convolutions of one width, a dense layer on a grid of means.

    The layers are stacked in one array and walked by `lax.scan`, so that compiling takes as long
    for ten as for ten thousand. It is its own deploy form: there is nothing to fuse.

    Attributes:
      depth: convolutions beside the stem.
      width: channels of all of them.
      activation: tanh, relu or leaky_relu.
      initializer: of their kernels: delta_orthogonal (at the activation's gain), he, or the default
        of the other nets. The stem and the head have the default.
      num_classes, dtype: as of the other nets.
      block: the deploy form's, for those who walk nets; it has no blocks.
    """

    depth: int = 1000
    width: int = 32
    activation: str = "tanh"
    initializer: str = "delta_orthogonal"
    num_classes: int = 1000
    block: Callable[..., nn.Module] = FusedConv
    dtype: Dtype = jnp.float32

    def plan(self) -> dict[str, dict[str, Any]]:
        """Empty: no block of it is to be fused."""
        for field, known in (("activation", ACTIVATIONS), ("initializer", INITIALIZERS)):
            if getattr(self, field) not in known:
                raise UsageError(
                    f"{field}={getattr(self, field)!r}: choose from {', '.join(known)}"
                )
        if self.block is not FusedConv:
            raise UsageError("deep_plain has no blocks to choose; leave model.block alone")
        for field in ("depth", "width", "num_classes"):
            if getattr(self, field) is None:
                raise UsageError(f"{field} must be given")
            check_whole(field, getattr(self, field))
        return {}

    def blocks(self) -> dict[str, nn.Module]:
        """Empty, as the plan."""
        return dict.fromkeys(self.plan())

    def frozen_blocks(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def features(self, *_: Any, **__: Any) -> NoReturn:
        """Raises UsageError: it has no stages."""
        raise UsageError("deep_plain is no backbone: all of its layers are of one resolution")

    def auxiliary_heads(self) -> dict[str, str]:
        """None."""
        return {}

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        activation, gain = ACTIVATIONS[self.activation]
        x = Conv(self.width, 3, strides=2, dtype=self.dtype, name="stem")(images)
        layers = nn.scan(
            lambda layer, x, _: (activation(layer(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        layer = SquareConv(INITIALIZERS[self.initializer](gain), self.dtype, name="layers")
        x, _ = layers(layer, activation(x), None)
        wide = accumulation_dtype(self.dtype)
        cells = grid_means(x.astype(wide), GRID)
        return dense(self.num_classes, cells.shape[-1], name="head", dtype=wide)(cells)


VARIANTS = {"deep_plain": DeepPlain}

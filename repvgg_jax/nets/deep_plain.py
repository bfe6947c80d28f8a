"""Deep plain nets without BatchNorm or branches, which a suitable initialization makes trainable.

Delta-orthogonal kernels (arXiv 1806.05393, section 3) make a tanh net of any depth an isometry at
initialization. An alternative is LeakyReLU with a max-norm constraint (`optim.max_norm`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Conv, Dtype, kernel_init
from repvgg_jax.layers.dense import dense
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_positive
from repvgg_jax.nets._spec import BlockSpec
from repvgg_jax.ops.batch_norm import accumulation_dtype, per_channel
from repvgg_jax.ops.convolution import convolve_by_matmul

SLOPE = 0.3  # slope of leaky_relu below zero


class Activation(NamedTuple):
    """A nonlinearity, and the gain of the kernels that preserves a signal's variance."""

    function: Callable[[Array], Array]
    gain: float


ACTIVATIONS = {
    "tanh": Activation(nn.tanh, 1.0),
    "relu": Activation(nn.relu, 2**0.5),
    "leaky_relu": Activation(
        partial(nn.leaky_relu, negative_slope=SLOPE), (2 / (1 + SLOPE**2)) ** 0.5
    ),
}
# The head gets the means of GRID x GRID cells, not a global mean, which would discard positions:
# delta-orthogonal kernels do not mix neighboring pixels at initialization.
GRID = 4
# Fields that apply to blocks and BatchNorms only, with their values when unset.
OF_BLOCKS = {"bn_group_size": None, "remat": None, "conv_algorithm": "auto"}
INITIALIZERS: dict[str, Callable[[float], nn.initializers.Initializer]] = {
    "delta_orthogonal": nn.initializers.delta_orthogonal,
    "default": lambda gain: kernel_init,
    "he": lambda gain: nn.initializers.he_normal(),
}


def grid_means(x: Array, cells: int) -> Array:
    """Returns the means over a grid of cells: [batch, height, width, c] -> [batch, cells^2 c].

    If a side of the map is not a multiple of `cells`, neighboring cells overlap by a pixel; if it
    is smaller, cells repeat.
    """
    rows, columns = (
        [slice(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
        for side in x.shape[1:3]
    )
    return jnp.concatenate([x[:, r, c].mean((1, 2)) for r in rows for c in columns], axis=-1)


class SquareConv(nn.Module):
    """A 3x3 convolution of stride 1 with a bias and as many output as input channels."""

    kernel_init: nn.initializers.Initializer
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        y = convolve_by_matmul(x, kernel, dtype=self.dtype)
        return y + per_channel(bias, x).astype(self.dtype)


class DeepPlain(Net):
    """A net of a stem of stride 2, `depth` 3x3 convolutions of equal width, and a dense head.

    The kernels of the layers are stacked in one array and run by `lax.scan`, so that compile time
    does not depend on the depth. The net has no blocks, so fusion does not change it.

    Attributes in addition to `num_classes` and `dtype` of `Net`:
      depth: number of convolutions after the stem.
      width: number of channels of all convolutions.
      activation: name of the nonlinearity, one of `ACTIVATIONS`.
      initializer: initializer of the stacked kernels, one of `INITIALIZERS`: delta_orthogonal (with
        the activation's gain), he, or default, which the stem and the head always use.
    """

    block: str = "fused"
    depth: int = 1000
    width: int = 32
    activation: str = "tanh"
    initializer: str = "delta_orthogonal"

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns an empty plan, since the net has no blocks."""
        self.check_fields()
        return ()

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        for field, known in (("activation", ACTIVATIONS), ("initializer", INITIALIZERS)):
            if getattr(self, field) not in known:
                choices = ", ".join(known)
                raise UsageError(f"{field}={getattr(self, field)!r}: choose from {choices}")
        for field, default in OF_BLOCKS.items():
            if getattr(self, field) != default:
                raise UsageError(f"deep_plain does not use blocks; unset model.{field}")
        for field in ("depth", "width", "num_classes"):
            if getattr(self, field) is None:
                raise UsageError(f"{field}=None: must be a positive integer")
            check_positive(field, getattr(self, field))

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

"""The fused form of every block: one convolution with a bias."""

from typing import ClassVar

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, Variables
from repvgg_jax.layers.conv import Conv
from repvgg_jax.ops.algorithms import Images, Outputs


class FusedConv(Block):
    """The block conv(x, kernel) + bias; `apply_relu` also applies the ReLU that follows it."""

    single: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Images, train: bool = False, *, apply_relu: bool = False) -> Outputs:
        return Conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            groups=self.groups,
            dilation=self.dilation,
            padding=self.padding,
            use_bias=True,
            apply_relu=apply_relu,
            dtype=self.dtype,
            algorithm=self.conv_algorithm,
            name="conv",
        )(x)

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the convolution itself."""
        return Affine(params["conv"]["kernel"], params["conv"]["bias"])

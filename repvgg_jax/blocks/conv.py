"""A convolution with a bias and without a BatchNorm, as in VGG (arXiv 1409.1556)."""

from typing import ClassVar

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, Variables, conv_kernel
from repvgg_jax.ops.algorithms import Images, Outputs


class ConvBlock(Block):
    """The block conv_kxk(x) with a bias.

    The kernel's initial variance is that of He et al. (arXiv 1502.01852), which keeps the scale of
    the features without a BatchNorm.
    """

    single: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        return self.conv(
            x, "kxk", self.kernel_size, use_bias=True, init=nn.initializers.he_normal()
        )

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the convolution itself."""
        return conv_kernel(params, "kxk")

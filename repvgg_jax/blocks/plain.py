"""A convolution with a BatchNorm, the baseline that is trained without branches."""

from typing import ClassVar

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, Variables
from repvgg_jax.ops.algorithms import Images, Outputs


class PlainBlock(Block):
    """The block BN(conv_kxk(x)).

    Attributes in addition to those of `Block`:
      use_bias: True if the convolution has a bias, as in torchvision's VGG. The mean that BatchNorm
        subtracts cancels it in training.
    """

    single: ClassVar[bool] = True

    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        x = self.conv(x, "kxk", self.kernel_size, self.use_bias)
        return self.norm(x, "kxk", train)

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the convolution with the BatchNorm folded into it."""
        return self.fold_branch(params, batch_stats, "kxk")

"""A convolution with a BatchNorm, the baseline that is trained without branches."""

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, Variables, fold_branch
from repvgg_jax.ops.algorithms import Images, Outputs


class PlainBlock(Block):
    """The block BN(conv_kxk(x))."""

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        return self.conv_bn(x, "kxk", self.kernel_size, train)

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the convolution with the BatchNorm folded into it."""
        return fold_branch(params, batch_stats, "kxk")

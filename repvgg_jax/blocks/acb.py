"""The asymmetric convolution block of ACNet (arXiv 1908.03930, section 3.3)."""

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, Variables
from repvgg_jax.ops.algorithms import Images, Outputs


class ACBlock(Block):
    """The block BN(conv_kxk(x)) + BN(conv_1xk(x)) + BN(conv_kx1(x))."""

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        k = self.kernel_size
        y = self.conv_bn(x, "kxk", k, train)
        y += self.conv_bn(x, "1xk", (1, k), train)
        return y + self.conv_bn(x, "kx1", (k, 1), train)

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum; the 1xk is added to the middle row, the kx1 to the middle column."""
        return self.fold_branches(params, batch_stats, "kxk", "1xk", "kx1")

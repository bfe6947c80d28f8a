"""MobileOne's block (arXiv 2206.04040, section 3.2), which has several kxk branches."""

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.base import Block, Variables
from repvgg_jax.errors import UsageError
from repvgg_jax.ops.algorithms import Images, Outputs


class MobileOneBlock(Block):
    """The block sum_i BN_i(conv_kxk_i(x)) + BN(conv_1x1(x)) + BN(x).

    The 1x1 branch exists if k > 1, and the identity branch if the stride is 1 and cin == features.

    Attributes:
      copies: number of kxk branches (the paper's k).
    """

    copies: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.copies, int) or self.copies < 1:
            raise UsageError(f"copies={self.copies!r}: must be a positive integer")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        y = sum(self.conv_bn(x, f"kxk_{i}", self.kernel_size, train) for i in range(self.copies))
        if self.kernel_size > 1:
            y += self.conv_bn(x, "1x1", 1, train)
        if self.keeps_shape(x.shape[-1]):
            y += self.norm(x, "identity", train)
        return y

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum of the folded branches."""
        copies = [f"kxk_{i}" for i in range(self.copies)]
        return self.fold_branches(params, batch_stats, *copies, "1x1", "identity")

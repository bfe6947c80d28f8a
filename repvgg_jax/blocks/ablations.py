"""Block variants of RepVGG's ablations, with their accuracies in arXiv 2101.03697, Table 7."""

from typing import ClassVar, NoReturn

from flax import linen as nn

from repvgg_jax.affine import Affine, add
from repvgg_jax.blocks.base import Block, Variables, conv_kernel
from repvgg_jax.errors import UsageError
from repvgg_jax.ops.algorithms import Images, Outputs


class IdentityWithoutBNBlock(Block):
    """The block BN(conv_kxk(x)) + BN(conv_1x1(x)) + x (top-1 74.18%)."""

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        y = self.conv_bn(x, "kxk", self.kernel_size, train)
        y += self.conv_bn(x, "1x1", 1, train)
        return y + x.astype(y.dtype) if self.keeps_shape(x.shape[-1]) else y

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum of the folded branches and the identity."""
        branches = self.fold_branches(params, batch_stats, "kxk", "1x1")
        return add(branches, *self.bare_identity(params))


class PostAdditionBNBlock(Block):
    """The block BN(conv_kxk(x) + conv_1x1(x) + x) (top-1 73.52%)."""

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        y = self.conv(x, "kxk", self.kernel_size) + self.conv(x, "1x1", 1)
        if self.keeps_shape(x.shape[-1]):
            y += x
        return self.norm(y, "", train)

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum of the branches with the BatchNorm folded into it."""
        branches = [conv_kernel(params, "kxk"), conv_kernel(params, "1x1")]
        total = add(*branches, *self.bare_identity(params))
        return self.fold_norm(total, params, batch_stats)


class ReLUInBranchBlock(Block):
    """The block relu(BN(conv_kxk(x))) + relu(BN(conv_1x1(x))) + relu(BN(x)) (top-1 75.69%)."""

    fusable: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        y = nn.relu(self.conv_bn(x, "kxk", self.kernel_size, train))
        y += nn.relu(self.conv_bn(x, "1x1", 1, train))
        if self.keeps_shape(x.shape[-1]):
            y += nn.relu(self.norm(x, "identity", train))
        return y

    def fuse(self, params: Variables, batch_stats: Variables) -> NoReturn:
        """Raises UsageError, since the block is not equivalent to a convolution."""
        raise UsageError(
            "block='relu_in_branch' cannot be fused, because a block with a ReLU in each branch is "
            "not equivalent to a convolution; deploy its train form"
        )

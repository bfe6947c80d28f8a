"""QARepVGG's block (arXiv 2212.01593, section 4.3), whose fused weights quantize well."""

from flax import linen as nn

from repvgg_jax.affine import Affine, add
from repvgg_jax.blocks.base import Block, Variables, conv_kernel
from repvgg_jax.ops.algorithms import Images, Outputs


class QARepVGGBlock(Block):
    """The block BN(BN(conv_kxk(x)) + conv_1x1(x) + x).

    The identity branch exists if the stride is 1 and cin == features. Squeeze-and-excite is applied
    by the net after the block; before the last BatchNorm, it would prevent fusion.
    """

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        y = self.conv_bn(x, "kxk", self.kernel_size, train) + self.conv(x, "1x1", 1)
        if self.keeps_shape(x.shape[-1]):
            y += x
        return self.norm(y, "", train)

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum of the branches with the last BatchNorm folded into it."""
        branches = [self.fold_branch(params, batch_stats, "kxk"), conv_kernel(params, "1x1")]
        total = add(*branches, *self.bare_identity(params))
        return self.fold_norm(total, params, batch_stats)

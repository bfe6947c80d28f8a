"""RepVGG's block (arXiv 2101.03697, section 3.2) and its fusion (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, identity, pad_to
from repvgg_jax.blocks.block import Block, fold_branch, fold_norm
from repvgg_jax.errors import UsageError

BRANCHES = ("kxk", "1x1", "identity")


class RepVGGBlock(Block):
    """BN(conv_kxk(x)) + BN(conv_1x1(x)) + BN(x).

    The identity branch exists where the shapes allow it: stride 1 and cin == features. The 1x1
    shares the kxk's stride and groups, and is left out where the kxk is a 1x1 itself.

    Attributes:
      branches: those of `BRANCHES` that the block has; ablations leave some out.

    Raises:
      UsageError: for an unknown branch, or where no branch is left.
    """

    branches: tuple[str, ...] = BRANCHES

    def __post_init__(self) -> None:
        if isinstance(self.branches, str) or set(self.branches) - set(BRANCHES):
            raise UsageError(f"branches={self.branches!r}: a tuple of some of {BRANCHES}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        k, outputs = self.kernel_size, []
        if "kxk" in self.branches:
            outputs.append(self.conv_bn(x, f"{k}", k, train))
        if "1x1" in self.branches and (k > 1 or not outputs):
            outputs.append(self.conv_bn(x, "1", 1, train))
        if "identity" in self.branches and self.keeps_shape(x.shape[-1]):
            outputs.append(self.norm_of(x, "0", train))
        if not outputs:
            raise UsageError(
                f"{self.name}: branches={self.branches} leaves nothing where stride or width "
                "changes; keep 'kxk' or '1x1'"
            )
        return sum(outputs[1:], outputs[0])


def fuse_repvgg(block: RepVGGBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The sum of the branches' folded BatchNorms, each as a kxk kernel."""
    k = block.kernel_size
    branches = [
        fold_branch(params, batch_stats, suffix)
        for suffix in dict.fromkeys((f"{k}", "1"))
        if f"conv{suffix}" in params
    ]
    if "bn0" in params:
        branches.append(fold_norm(identity(block.identity_shape()), params, batch_stats, "0"))
    return pad_to((k, k), add(*branches))

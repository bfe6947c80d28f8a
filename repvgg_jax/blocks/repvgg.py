"""RepVGG's block (arXiv 2101.03697, section 3.2) and its fusion (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, identity, pad_to
from repvgg_jax.blocks.base import Block, fold_branch, fold_norm
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Kernel
from repvgg_jax.layers.norm import NormVariables
from repvgg_jax.ops.batch_norm import split_into_groups
from repvgg_jax.ops.branch_statistics import (
    Geometry,
    input_moments_are_faster,
    sum_normalized_branches,
)

BRANCHES = ("kxk", "1x1", "identity")
BRANCH_STATISTICS = ("auto", "moments", "batch")


class RepVGGBlock(Block):
    """BN(conv_kxk(x)) + BN(conv_1x1(x)) + BN(x).

    The identity branch exists where the shapes allow it: stride 1 and cin == features. The 1x1
    shares the kxk's stride and groups, and is left out where the kxk is a 1x1 itself.

    Attributes:
      branches: those of `BRANCHES` that the block has; ablations leave some out.
      branch_statistics: how training computes the 1x1 and the identity. "batch": each by itself, as
        written above; "moments": both at once from the moments of x, which is the same function and
        gradient (`ops.branch_statistics`); "auto": the faster one (docs/notes/speed.md).

    Raises:
      UsageError: for an unknown branch or word, or where no branch is left.
    """

    branches: tuple[str, ...] = BRANCHES
    branch_statistics: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.branches, str) or set(self.branches) - set(BRANCHES):
            raise UsageError(f"branches={self.branches!r}: a tuple of some of {BRANCHES}")
        if self.branch_statistics not in BRANCH_STATISTICS:
            raise UsageError(
                f"branch_statistics={self.branch_statistics!r}: one of "
                f"{', '.join(BRANCH_STATISTICS)}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        k, suffixes = self.kernel_size, self._suffixes(x.shape[-1])
        if train and "1x1" in suffixes and not self.is_initializing() and self._by_moments(x):
            return self._sum_by_moments(x, suffixes)
        outputs = []
        if "kxk" in suffixes:
            outputs.append(self.conv_bn(x, f"{k}", k, train))
        if "1x1" in suffixes:
            outputs.append(self.conv_bn(x, "1", 1, train))
        if "identity" in suffixes:
            outputs.append(self.norm_of(x, "0", train))
        return sum(outputs[1:], outputs[0])

    def _suffixes(self, cin: int) -> dict[str, str]:
        """What the names of each branch's layers end with, for the branches that it has."""
        suffixes = {"kxk": f"{self.kernel_size}"} if "kxk" in self.branches else {}
        if "1x1" in self.branches and (self.kernel_size > 1 or not suffixes):
            suffixes["1x1"] = "1"
        if "identity" in self.branches and self.keeps_shape(cin):
            suffixes["identity"] = "0"
        if not suffixes:
            raise UsageError(
                f"{self.name}: branches={self.branches} leaves nothing where stride or width "
                "changes; keep 'kxk' or '1x1'"
            )
        return suffixes

    def _by_moments(self, x: Array) -> bool:
        if self.branch_statistics == "auto":
            return input_moments_are_faster(x.astype(self.dtype), self.strides, self.conv_algorithm)
        return self.branch_statistics == "moments"

    def _sum_by_moments(self, x: Array, suffixes: dict[str, str]) -> Array:
        cin, k = x.shape[-1], self.kernel_size
        y = self.conv_of(x, suffixes["kxk"], k) if "kxk" in suffixes else None
        kernel = Kernel((1, 1, cin // self.groups, self.features), name="conv1")()
        norms = {
            name: NormVariables(cin if name == "identity" else self.features, name=f"bn{suffix}")()
            for name, suffix in suffixes.items()
        }
        images = x[:, :: self.strides, :: self.strides].astype(self.dtype)
        z, statistics = sum_normalized_branches(
            split_into_groups(images, self.bn_group_size),
            None if y is None else split_into_groups(y, self.bn_group_size),
            kernel,
            {name: norm.gamma for name, norm in norms.items()},
            {name: norm.beta for name, norm in norms.items()},
            Geometry(self.groups, self.dtype, self.conv_algorithm),
        )
        for name, norm in norms.items():
            norm.move(*statistics[name])
        return z.reshape(-1, *z.shape[2:])


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

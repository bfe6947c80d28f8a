"""RepVGG's block (arXiv 2101.03697, section 3.2) and its fusion (section 3.3)."""

from flax import linen as nn

from repvgg_jax.affine import Affine, pad_to
from repvgg_jax.blocks.base import Block, Variables
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.norm import NormVariables
from repvgg_jax.ops.algorithms import Images, Outputs
from repvgg_jax.ops.batch_norm import split_into_groups
from repvgg_jax.ops.branch_statistics import (
    Geometry,
    input_moments_are_faster,
    sum_normalized_branches,
)

BRANCHES = ("kxk", "1x1", "identity")
BRANCH_STATISTICS = ("auto", "moments", "batch")


class RepVGGBlock(Block):
    """The block BN(conv_kxk(x)) + BN(conv_1x1(x)) + BN(x).

    The identity branch exists if the stride is 1 and cin == features. The 1x1 branch has the stride
    and groups of the kxk branch, and does not exist if k == 1.

    Attributes:
      branches: names of the branches, a subset of `BRANCHES`; ablations omit some.
      branch_statistics: method by which training computes the 1x1 and identity branches. "batch"
        computes each branch separately; "moments" computes both from the moments of x, with equal
        outputs and gradients (`ops.branch_statistics`); "auto" chooses the faster method
        (docs/notes/speed.md).

    Raises:
      UsageError: for an unknown branch or `branch_statistics`, or if the block has no branches.
    """

    branches: tuple[str, ...] = BRANCHES
    branch_statistics: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.branches, str) or set(self.branches) - set(BRANCHES):
            raise UsageError(f"branches={self.branches!r}: must be a tuple of names in {BRANCHES}")
        if self.branch_statistics not in BRANCH_STATISTICS:
            known = ", ".join(BRANCH_STATISTICS)
            raise UsageError(f"branch_statistics={self.branch_statistics!r}: choose from {known}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        branches = self._present(x.shape[-1])
        if train and "1x1" in branches and not self.is_initializing() and self._by_moments(x):
            return self._sum_by_moments(x, branches)
        outputs = []
        if "kxk" in branches:
            outputs.append(self.conv_bn(x, "kxk", self.kernel_size, train))
        if "1x1" in branches:
            outputs.append(self.conv_bn(x, "1x1", 1, train))
        if "identity" in branches:
            outputs.append(self.norm(x, "identity", train))
        return sum(outputs[1:], outputs[0])

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum of the folded branches, each as a kxk kernel."""
        size = (self.kernel_size, self.kernel_size)
        return pad_to(size, self.fold_branches(params, batch_stats, *BRANCHES))

    def _present(self, cin: int) -> list[str]:
        """Returns the names of the block's branches for `cin` input channels."""
        present = ["kxk"] if "kxk" in self.branches else []
        if "1x1" in self.branches and (self.kernel_size > 1 or not present):
            present.append("1x1")
        if "identity" in self.branches and self.keeps_shape(cin):
            present.append("identity")
        if not present:
            raise UsageError(
                f"{self.name}: branches={self.branches} has no branch for blocks whose stride or "
                "width changes; add 'kxk' or '1x1'"
            )
        return present

    def _by_moments(self, x: Images) -> bool:
        if self.branch_statistics == "auto":
            return input_moments_are_faster(x.astype(self.dtype), self.strides, self.conv_algorithm)
        return self.branch_statistics == "moments"

    def _sum_by_moments(self, x: Images, branches: list[str]) -> Outputs:
        """Returns the block's training output, using `sum_normalized_branches`."""
        cin = x.shape[-1]
        y = self.conv(x, "kxk", self.kernel_size) if "kxk" in branches else None
        kernel = self.declare_kernel("1x1", (1, 1, cin // self.groups, self.features))["kernel"]
        norms = {
            name: NormVariables(cin if name == "identity" else self.features, name=f"bn_{name}")()
            for name in branches
        }
        images = x[:, :: self.strides, :: self.strides].astype(self.dtype)
        z, statistics = sum_normalized_branches(
            split_into_groups(images, self.bn_group_size),
            None if y is None else split_into_groups(y, self.bn_group_size),
            kernel,
            {name: norm.gamma for name, norm in norms.items()},
            {name: norm.beta for name, norm in norms.items()},
            Geometry(self.groups, self.dtype, self.conv_algorithm, self.bn_epsilon),
        )
        for name, norm in norms.items():
            norm.update_running(*statistics[name])
        return z.reshape(-1, *z.shape[2:])

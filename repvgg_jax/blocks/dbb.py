"""The diverse branch block (arXiv 2103.13425, section 3.3) and its six transforms (section 3.2)."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer

from repvgg_jax.affine import Affine, add, average, chain, fold_bn, identity
from repvgg_jax.blocks.base import Block, Variables, conv_kernel
from repvgg_jax.layers.conv import kernel_init
from repvgg_jax.ops.algorithms import Images, Outputs
from repvgg_jax.ops.convolution import convolve


class DiverseBranchBlock(Block):
    """The block BN(kxk) + BN(1x1) + BN(average(BN(1x1))) + BN(kxk(BN(1x1))).

    The layers of the last two branches are named `average_1x1`, `average`, `chain_1x1` and
    `chain_kxk`. The 1x1 before the kxk keeps the number of channels and is initialized to the
    identity. Before the average and the last kxk, the output of a BatchNorm is padded with the
    value to which the BatchNorm maps zero by its running statistics, so that fusion is exact at the
    border; that value is not differentiated. A depthwise block (groups == cin == features) has no
    1x1 branch, averages x itself, and doubles the channels before its second kxk.
    """

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        k, cin = self.kernel_size, x.shape[-1]
        depthwise = self.groups == cin == self.features

        def pointwise(branch: str, width: int, init: Initializer = kernel_init) -> Outputs:
            kernel = self.declare_kernel(branch, (1, 1, cin // self.groups, width), init)["kernel"]
            shared = dict(groups=self.groups, dtype=self.dtype, algorithm=self.conv_algorithm)
            return convolve(x, kernel, **shared)

        outputs = [self.conv_bn(x, "kxk", k, train)]
        if depthwise:
            margin = self.dilation * (k // 2)
            wide = jnp.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        else:
            outputs.append(self.conv_bn(x, "1x1", 1, train))
            y = pointwise("average_1x1", self.features)
            wide = self._bordered(y, "average_1x1", train)
        outputs.append(self.norm(self._average(wide), "average", train))
        if depthwise:
            y = pointwise("chain_1x1", 2 * cin)
        else:  # starts as the identity
            y = x.astype(self.dtype) + pointwise("chain_1x1", cin, nn.initializers.zeros)
        wide = self._bordered(y, "chain_1x1", train)
        shape = (k, k, wide.shape[-1] // self.groups, self.features)
        y = self.convolve(wide, self.declare_kernel("chain_kxk", shape)["kernel"], padding="VALID")
        outputs.append(self.norm(y, "chain_kxk", train))
        return sum(outputs[1:], outputs[0])

    def _bordered(self, y: Images, branch: str, train: bool) -> Outputs:
        """Returns BN(y), padded with the value to which the BatchNorm maps zero."""
        y = self.norm(y, branch, train)
        margin = self.dilation * (self.kernel_size // 2)
        params, stats = (self.variables[c][f"bn_{branch}"] for c in ("params", "batch_stats"))
        outside = lax.stop_gradient(
            fold_bn(Affine(jnp.zeros(())), params, stats, self.bn_epsilon).bias
        )
        batch, height, width, channels = y.shape
        shape = (batch, height + 2 * margin, width + 2 * margin, channels)
        wide = jnp.broadcast_to(outside.astype(y.dtype), shape)
        return wide.at[:, margin : margin + height, margin : margin + width].set(y)

    def _average(self, wide: Images) -> Outputs:
        k, step, gap = self.kernel_size, self.strides, self.dilation
        total = lax.reduce_window(
            wide, 0.0, lax.add, (1, k, k, 1), (1, step, step, 1), "VALID", None, (1, gap, gap, 1)
        )
        return total / k**2

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum of the branches, with each two-layer branch chained to one layer."""

        def fold(branch: str) -> Affine:
            return self.fold_branch(params, batch_stats, branch)

        averaged = self.fold_norm(average(self.identity_shape()), params, batch_stats, "average")
        branches = [fold("kxk")]
        depthwise = "conv_1x1" not in params
        if not depthwise:
            branches.append(fold("1x1"))
            averaged = chain(fold("average_1x1"), averaged, self.groups)
        branches.append(averaged)
        before = conv_kernel(params, "chain_1x1")
        if not depthwise:
            before = add(before, identity(before.kernel))
        before = self.fold_norm(before, params, batch_stats, "chain_1x1")
        branches.append(chain(before, fold("chain_kxk"), self.groups))
        return add(*branches)

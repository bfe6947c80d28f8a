"""Constant-scale linear addition, the counterpart of RepOptimizer (arXiv 2205.15242, section 3)."""

import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.affine import Affine, add, identity
from repvgg_jax.blocks.base import Block, FeatureMap, KernelArray, Variables
from repvgg_jax.ops.algorithms import Images, Outputs
from repvgg_jax.ops.batch_norm import per_channel


class CSLABlock(Block):
    """The block BN(s conv_kxk(x) + t conv_1x1(x) + u x) with vectors s, t and u over channels.

    The term u x exists if the stride is 1 and cin == features. Training s, t and u is the paper's
    hyper-search, except that all are initialized to 1 here (in the paper, s and t are initialized
    to sqrt(2 / l) in the l-th layer of a stage). With constant s, t and u, training is equivalent
    to that of one plain convolution with scaled gradients (`repvgg_jax.optim.repoptimizer`).
    """

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        def scaled(y: FeatureMap, branch: str) -> FeatureMap:
            scale = self.param(
                f"scale_{branch}", nn.initializers.ones, (self.features,), jnp.float32
            )
            return y * per_channel(scale, y).astype(y.dtype)

        y = scaled(self.conv(x, "kxk", self.kernel_size), "kxk")
        y += scaled(self.conv(x, "1x1", 1), "1x1")
        if self.keeps_shape(x.shape[-1]):
            y += scaled(x, "identity").astype(y.dtype)
        return self.norm(y, "", train)

    def kernel(self, params: Variables) -> KernelArray:
        """Returns s K + t pad(K1) + u I, the kernel before the BatchNorm."""
        kernels = {name: params[f"conv_{name}"]["kernel"] for name in ("kxk", "1x1")}
        if "scale_identity" in params:
            kernels["identity"] = identity(self.identity_shape()).kernel
        scaled = [k * per_channel(params[f"scale_{name}"], k) for name, k in kernels.items()]
        return add(*(Affine(kernel) for kernel in scaled)).kernel

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the sum of the scaled branches with the BatchNorm folded into it."""
        return self.fold_norm(Affine(self.kernel(params)), params, batch_stats)

"""Online convolutional re-parameterization (arXiv 2204.00826, section 3)."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, chain, identity
from repvgg_jax.blocks.base import KernelArray, KernelBlock, Variables
from repvgg_jax.ops.batch_norm import per_channel

EXPANSION = 8  # channel multiplier of the depthwise separable branch
NARROW_GROUPS = 4  # with more groups, the 1x1 of "chain" doubles the channels and has no identity
# Initial scale of each branch's output channels.
SCALES = {
    "kxk": 0.25,
    "average": 0.25,
    "prior": 0.0,
    "chain": 0.5,
    "1x1": 1.0,
    "separable": 0.5,
}
weight_init = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


class OREPABlock(KernelBlock):
    """The block BN(conv(x, W)), whose kernel W is the sum of its branches' kernels.

    W = v0 K + v1 A / k^2 + v2 P cos + v3 chain(I + E, K') + v4 Q + v5 depthwise-separable, where A,
    P and Q are 1x1 kernels, cos is the fixed kernel of `frequencies`, and each v is a vector over
    the output channels. W is computed at each step, so activations have a single convolution.

    Each branch is a grouped convolution, and so is the block. With one group, it is the paper's
    block.
    """

    def declare(self, cin: int) -> dict[str, Any]:
        """Creates the kernels and scales of all branches."""
        k, cout, inputs = self.kernel_size, self.features, cin // self.groups
        wide = cin if self.groups <= NARROW_GROUPS else 2 * cin
        expand_init = nn.initializers.zeros if wide == cin else weight_init
        shapes = {
            "kxk": (k, k, inputs, cout),
            "average_1x1": (1, 1, inputs, cout),
            "prior_1x1": (1, 1, inputs, cout),
            "1x1": (1, 1, inputs, cout),
            "chain_1x1": (1, 1, inputs, wide),
            "chain_kxk": (k, k, wide // self.groups, cout),
            "depthwise": (k, k, 1, cin * EXPANSION),
            "pointwise": (1, 1, inputs * EXPANSION, cout),
        }
        params: dict[str, Any] = {}
        for branch, shape in shapes.items():
            init = expand_init if branch == "chain_1x1" else weight_init
            params[f"conv_{branch}"] = self.declare_kernel(branch, shape, init)
        scales = jnp.repeat(jnp.array(list(SCALES.values()), jnp.float32)[:, None], cout, axis=1)
        return params | {"branch_scales": self.param("branch_scales", lambda _: scales)}

    def kernel(self, params: Variables) -> KernelArray:
        """Returns the sum of the branches' kernels, each scaled by output channel."""
        k, groups = self.kernel_size, self.groups
        kernels = {name: layer["kernel"] for name, layer in params.items() if "conv" in name}
        window = jnp.ones((k, k, 1, 1), kernels["conv_kxk"].dtype)
        expand = Affine(kernels["conv_chain_1x1"])
        if expand.kernel.shape[2] * groups == expand.kernel.shape[3]:
            expand = add(expand, identity(expand.kernel))
        branches = {
            "kxk": kernels["conv_kxk"],
            "average": kernels["conv_average_1x1"] * window / k**2,
            "prior": kernels["conv_prior_1x1"] * frequencies(k, self.features)[:, :, None],
            "chain": chain(expand, Affine(kernels["conv_chain_kxk"]), groups).kernel,
            "1x1": jnp.pad(kernels["conv_1x1"], [(k // 2,) * 2] * 2 + [(0, 0)] * 2),
            "separable": _separable(kernels["conv_depthwise"], kernels["conv_pointwise"], groups),
        }
        scaled = zip(SCALES, params["branch_scales"], strict=True)
        return sum(branches[name] * per_channel(scale, branches[name]) for name, scale in scaled)


def frequencies(k: int, channels: int) -> np.ndarray:
    """Returns cos(pi (h + 1/2) f / k) as kernels [k, k, channels].

    h is the row in the first half of the channels and the column in the second half. f is 1 plus
    the channel's index within its half.
    """
    half = channels // 2
    angle = math.pi * (np.arange(k) + 0.5) / k
    bank = np.empty((k, k, channels), np.float32)
    bank[:, :, :half] = np.cos(angle[:, None] * (np.arange(half) + 1))[:, None]
    bank[:, :, half:] = np.cos(angle[:, None] * (np.arange(channels - half) + 1))[None]
    return bank


def _separable(depthwise: Array, pointwise: Array, groups: int) -> KernelArray:
    """Returns the kernel of a depthwise layer followed by a grouped 1x1 layer."""
    k, cout = depthwise.shape[0], pointwise.shape[-1]
    inputs = depthwise.shape[-1] // EXPANSION // groups
    depthwise = depthwise.reshape(k, k, groups, inputs, EXPANSION)
    pointwise = pointwise.reshape(inputs, EXPANSION, groups, cout // groups)
    return jnp.einsum("hwgie,iego->hwigo", depthwise, pointwise).reshape(k, k, inputs, cout)

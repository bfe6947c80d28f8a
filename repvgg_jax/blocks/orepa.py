"""Online convolutional re-parameterization (arXiv 2204.00826, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, chain, identity
from repvgg_jax.blocks.base import Block, fold_norm

EXPANSION = 8  # channels that the depthwise separable branch makes of each input
NARROW_GROUPS = 4  # with more, the 1x1 before a kxk doubles the width and is no identity
# The branches, and what the vector that scales each one's output channels starts as.
SCALES = {
    "origin": 0.25,
    "average": 0.25,
    "prior": 0.0,
    "pointwise_kxk": 0.5,
    "pointwise": 1.0,
    "separable": 0.5,
}
weight_init = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


class OREPABlock(Block):
    """BN(conv(x, W)) with W = sum_b v_b W_b made from the branches' kernels at each step.

    W = v0 K + v1 A / k^2 + v2 P cos + v3 chain(I + E, K') + v4 Q + v5 depthwise-separable, where A,
    P and Q are 1x1 kernels, cos is a fixed bank of k frequencies and each v is a vector over the
    output channels. One convolution and one BatchNorm of activations, whatever the branches.

    Every branch is defined within its group, so that the block is a grouped convolution for any
    `groups`; at groups = 1 this is the paper's.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        k, cin, cout, groups = self.kernel_size, x.shape[-1], self.features, self.groups

        wide = cin if groups <= NARROW_GROUPS else 2 * cin

        def kernel(name: str, *shape: int, init: Callable[..., Array] = weight_init) -> None:
            self.param(name, init, shape, jnp.float32)

        kernel("origin_kernel", k, k, cin // groups, cout)
        for name in ("average_kernel", "prior_kernel", "pointwise_kernel"):
            kernel(name, 1, 1, cin // groups, cout)
        start = nn.initializers.zeros if wide == cin else weight_init
        kernel("expand_kernel", 1, 1, cin // groups, wide, init=start)
        kernel("kxk_kernel", k, k, wide // groups, cout)
        kernel("depthwise_kernel", k, k, 1, cin * EXPANSION)
        kernel("separable_kernel", 1, 1, cin // groups * EXPANSION, cout)
        scales = jnp.repeat(jnp.array(list(SCALES.values()), jnp.float32)[:, None], cout, axis=1)
        self.param("branch_scales", lambda _: scales)
        y = self.conv_with(x, generate(self, self.variables["params"]))
        return self.norm_of(y, "", train)


def generate(block: OREPABlock, params: Mapping) -> Array:
    """The kernel W [k, k, cin / groups, cout] of the branches' parameters."""
    k, groups = block.kernel_size, block.groups
    window = jnp.ones((k, k, 1, 1), params["origin_kernel"].dtype)
    expand = Affine(params["expand_kernel"])
    if expand.kernel.shape[2] * groups == expand.kernel.shape[3]:
        expand = add(expand, identity(expand.kernel))
    branches = {
        "origin": params["origin_kernel"],
        "average": params["average_kernel"] * window / k**2,
        "prior": params["prior_kernel"] * frequencies(k, block.features)[:, :, None],
        "pointwise_kxk": chain(expand, Affine(params["kxk_kernel"]), groups).kernel,
        "pointwise": jnp.pad(params["pointwise_kernel"], [(k // 2,) * 2] * 2 + [(0, 0)] * 2),
        "separable": _separable(params["depthwise_kernel"], params["separable_kernel"], groups),
    }
    scaled = zip(SCALES, params["branch_scales"], strict=True)
    return sum(branches[name] * scale for name, scale in scaled)


def frequencies(k: int, channels: int) -> np.ndarray:
    """cos(pi (h + 1/2) f / k) down the first half of the channels, across in the second: [k, k, c].

    f counts from 1 within each half.
    """
    half = channels // 2
    place = math.pi * (np.arange(k) + 0.5) / k
    down = np.cos(place[:, None] * (np.arange(half) + 1))
    across = np.cos(place[:, None] * (np.arange(channels - half) + 1))
    shape = (k, k)
    return np.concatenate(
        [
            np.broadcast_to(down[:, None], (*shape, half)),
            np.broadcast_to(across[None], (*shape, channels - half)),
        ],
        axis=-1,
    ).astype(np.float32)


def _separable(depthwise: Array, pointwise: Array, groups: int) -> Array:
    """A depthwise kernel of EXPANSION outputs a channel, then a grouped 1x1, as one kernel."""
    k, cout = depthwise.shape[0], pointwise.shape[-1]
    inputs = depthwise.shape[-1] // EXPANSION // groups
    depthwise = depthwise.reshape(k, k, groups, inputs, EXPANSION)
    pointwise = pointwise.reshape(inputs, EXPANSION, groups, cout // groups)
    return jnp.einsum("hwgie,iego->hwigo", depthwise, pointwise).reshape(k, k, inputs, cout)


def fuse_orepa(block: OREPABlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The generated kernel, with its BatchNorm folded."""
    return fold_norm(Affine(generate(block, params)), params, batch_stats, "")

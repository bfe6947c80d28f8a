"""RepOptimizer (arXiv 2205.15242, section 3): the branches in the optimizer, the net plain.

A block s conv(x, K) + t conv(x, K1) + u x of constant s and t (`blocks/csla.py`) trains as one
plain convolution of kernel W = s K + t pad(K1) + u I does, if W starts as that and its gradient is
multiplied, by output channel c, with s_c^2 at every tap, t_c^2 more at the centre taps, and 1 more
at the centre tap of the channel's own input. The scales come from a short training of the block
with s, t and u as parameters (the paper's hyper-search).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, identity
from repvgg_jax.blocks.csla import CSLABlock, csla_kernel
from repvgg_jax.blocks.registry import BLOCKS, module_type
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import Variables


def to_plain(net: nn.Module, variables: Variables) -> tuple[nn.Module, dict[str, Any]]:
    """The plain net of kernels W = s K + t pad(K1) + u I: the rule of initialisation.

    Args:
      net, variables: of block `csla`; the BatchNorms, squeeze-and-excite and the head are kept.

    Raises:
      UsageError: for another block.
    """
    _check_csla(net)
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    for name, block in net.blocks().items():
        k = block.kernel_size
        kernel = csla_kernel(block, params[name])
        params[name] = {f"conv{k}": {"kernel": kernel}, f"bn{k}": params[name]["bn"]}
        stats[name] = {f"bn{k}": stats[name]["bn"]}
    return net.clone(block=BLOCKS["plain"].block), {"params": params, "batch_stats": stats}


def with_scales(net: nn.Module, fresh: Variables, searched: Variables) -> dict[str, Any]:
    """Fresh variables of a `csla` net with the scales that a search found."""
    _check_csla(net)
    params = {
        name: tree | {k: v for k, v in searched["params"][name].items() if k.startswith("scale_")}
        if name in net.plan()
        else tree
        for name, tree in fresh["params"].items()
    }
    return dict(fresh) | {"params": params}


def scale_gradients(net: nn.Module, searched: Variables) -> optax.GradientTransformation:
    """Multiplies the gradients of a plain net's kernels as its branches would have, under SGD.

    The first of a chain, before weight decay and momentum. Nothing else may act on the norm of
    gradients or kernels (clipping, max-norm): that would break the equality.

    Args:
      net, searched: of block `csla`, for the scales.
    """
    _check_csla(net)
    scales = {
        name: {k: v for k, v in searched["params"][name].items() if k.startswith("scale_")}
        for name in net.plan()
    }
    blocks = net.blocks()

    def multiply(gradients: Any, _: Any = None) -> Any:
        result = dict(gradients)
        for name, block in blocks.items():
            layer = f"conv{block.kernel_size}"
            kernel = gradients[name][layer]["kernel"]
            factor = multiplier(scales[name], kernel)
            result[name] = dict(gradients[name]) | {layer: {"kernel": kernel * factor}}
        return result

    return optax.stateless(multiply)


def multiplier(scales: Mapping[str, Array], like: Array) -> Array:
    """The factor of each tap of a kernel [k, k, cin / groups, cout]: s^2, + t^2 and + 1 inside."""
    branches = [
        Affine(jnp.ones_like(like) * scales["scale_kxk"] ** 2),
        Affine(jnp.ones_like(like[:1, :1]) * scales["scale_pointwise"] ** 2),
    ]
    if "scale_identity" in scales:
        branches.append(identity(like))
    return add(*branches).kernel


def _check_csla(net: nn.Module) -> None:
    if module_type(net.block) is not CSLABlock:
        raise UsageError("the scales of RepOptimizer come from a net of block='csla'")

"""RepOptimizer (arXiv 2205.15242, section 3): branches in the optimizer of a plain net.

A block s conv(x, K) + t conv(x, K1) + u x with constant s and t (`blocks/csla.py`) trains as one
plain convolution of kernel W = s K + t pad(K1) + u I does, if W starts as that and its gradient is
multiplied, by output channel c, with s_c^2 at every tap, t_c^2 more at the center taps, and 1 more
at the center tap of the channel's own input. The scales come from a short training of the block
with s, t and u as parameters (the paper's hyper-search).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from repvgg_jax.affine import Affine, add, identity
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import Net, Variables
from repvgg_jax.ops.batch_norm import per_channel


def to_plain(net: Net, variables: Variables) -> tuple[Net, dict[str, Any]]:
    """Returns the plain net of a `csla` net, with kernels W = s K + t pad(K1) + u I to start from.

    The BatchNorms, squeeze-and-excite and the head keep their variables.

    Raises:
      UsageError: for a net of another block.
    """
    _check_csla(net)
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    for name, block in net.blocks().items():
        kernel = block.kernel(params[name])
        params[name] = {"conv_kxk": {"kernel": kernel}, "bn_kxk": params[name]["bn"]}
        stats[name] = {"bn_kxk": stats[name]["bn"]}
    return net.clone(block="plain"), {"params": params, "batch_stats": stats}


def with_scales(net: Net, fresh: Variables, searched: Variables) -> dict[str, Any]:
    """Returns fresh variables of a `csla` net with the scales that a search found."""
    params = dict(fresh["params"])
    for name, scales in _scales(net, searched).items():
        params[name] = params[name] | scales
    return dict(fresh) | {"params": params}


def scale_gradients(net: Net, searched: Variables) -> optax.GradientTransformation:
    """Returns a transformation of a plain net's gradients to those of its branches under SGD.

    The scales are those of `searched`, variables of the `csla` net. It is the first of a chain,
    before weight decay and momentum. Nothing else may act on the norm of gradients or kernels
    (clipping, max-norm): that would break the equality.

    Raises:
      UsageError: for a net of another block.
    """
    scales = _scales(net, searched)

    def multiply(gradients: Any, _: Any = None) -> Any:
        result = dict(gradients)
        for name, block_scales in scales.items():
            kernel = gradients[name]["conv_kxk"]["kernel"]
            scaled = kernel * multiplier(block_scales, kernel)
            result[name] = dict(gradients[name]) | {"conv_kxk": {"kernel": scaled}}
        return result

    return optax.stateless(multiply)


def multiplier(scales: Mapping[str, Array], like: Array) -> Array:
    """Returns the factor of each tap of a kernel [k, k, cin / groups, cout].

    It is s^2, plus t^2 at the center taps, plus 1 at the channel's own center tap if the block has
    an identity branch.
    """
    branches = [
        Affine(jnp.ones_like(like) * per_channel(scales["scale_kxk"] ** 2, like)),
        Affine(jnp.ones_like(like[:1, :1]) * per_channel(scales["scale_1x1"] ** 2, like)),
    ]
    if "scale_identity" in scales:
        branches.append(identity(like))
    return add(*branches).kernel


def _scales(net: Net, variables: Variables) -> dict[str, dict[str, Array]]:
    """Returns block name -> the scales of its branches, by parameter name."""
    _check_csla(net)
    scales = {}
    for spec in net.plan():
        params = variables["params"][spec.name]
        scales[spec.name] = {name: params[name] for name in params if name.startswith("scale_")}
    return scales


def _check_csla(net: Net) -> None:
    if net.block != "csla":
        raise UsageError(
            f"RepOptimizer takes its scales from a net of block='csla', not {net.block!r}"
        )

"""RepOptimizer (arXiv 2205.15242, section 3): gradient scales that replace a plain net's branches.

Training a block s conv(x, K) + t conv(x, K1) + u x with constant s, t and u (`blocks/csla.py`) is
equivalent to training one plain convolution that is initialized to W = s K + t pad(K1) + u I, if
the gradient for output channel c is multiplied by s_c^2, plus t_c^2 at the center of the kernel,
plus 1 at the center tap from input channel c. The scales are found by a short training of the block
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
    """Returns the plain net of a `csla` net, with kernels W = s K + t pad(K1) + u I.

    The variables of BatchNorms, squeeze-and-excite and the head are not changed.

    Raises:
      UsageError: if the net's block is not `csla`.
    """
    _check_csla(net)
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    for name, block in net.blocks().items():
        kernel = block.kernel(params[name])
        params[name] = {"conv_kxk": {"kernel": kernel}, "bn_kxk": params[name]["bn"]}
        stats[name] = {"bn_kxk": stats[name]["bn"]}
    return net.clone(block="plain"), {"params": params, "batch_stats": stats}


def with_scales(net: Net, fresh: Variables, searched: Variables) -> dict[str, Any]:
    """Returns fresh variables of a `csla` net, with the scales replaced by searched ones."""
    params = dict(fresh["params"])
    for name, scales in _scales(net, searched).items():
        params[name] = params[name] | scales
    return dict(fresh) | {"params": params}


def scale_gradients(net: Net, searched: Variables) -> optax.GradientTransformation:
    """Returns a transformation that scales a plain net's gradients so that it trains like `csla`.

    It takes the scales from `searched`, the variables of the `csla` net. It must be the first
    transformation of a chain, before weight decay and momentum. Transformations that depend on
    norms of gradients or kernels (clipping, max-norm) break the equivalence.

    Raises:
      UsageError: if the net's block is not `csla`.
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
    """Returns the factor of each element of a kernel's gradient [k, k, cin / groups, cout].

    The factor is s^2, plus t^2 at the center of the kernel, plus 1 at the center tap from the same
    input channel if the block has an identity branch.
    """
    branches = [
        Affine(jnp.ones_like(like) * per_channel(scales["scale_kxk"] ** 2, like)),
        Affine(jnp.ones_like(like[:1, :1]) * per_channel(scales["scale_1x1"] ** 2, like)),
    ]
    if "scale_identity" in scales:
        branches.append(identity(like))
    return add(*branches).kernel


def _scales(net: Net, variables: Variables) -> dict[str, dict[str, Array]]:
    """Returns block name -> parameter name -> scale of a branch."""
    _check_csla(net)
    scales = {}
    for spec in net.plan():
        params = variables["params"][spec.name]
        scales[spec.name] = {name: params[name] for name in params if name.startswith("scale_")}
    return scales


def _check_csla(net: Net) -> None:
    if net.block != "csla":
        raise UsageError(
            f"RepOptimizer requires a net with block='csla' for its scales, not {net.block!r}"
        )

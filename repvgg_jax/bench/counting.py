"""Counts of a net's parameters, multiply-adds, and multiplications under Winograd."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.runtime.devices import compiling_for, target


def count_parameters(variables: Any) -> int:
    """Returns the number of elements in `params`, without running statistics."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_macs(net: nn.Module, variables: Any, image_size: int = 224) -> int:
    """Returns the multiply-adds of convolutions and matrix products for one image in evaluation.

    They are counted in the traced program, which works for any net and computes nothing. As in the
    literature, additions, BatchNorms and nonlinearities do not count. Neither does work that does
    not depend on the batch, such as computing a kernel from other parameters. The variables may be
    `jax.ShapeDtypeStruct`s, and `image_size` is the side of the image in pixels.

    Example:
      >>> net = rj.create("repvgg_a0")
      >>> count_macs(net, rj.init(net, jax.random.key(0)), image_size=224)
      1512581120
    """
    return _count(net, variables, image_size, None)


def count_winograd_multiplications(
    net: nn.Module, variables: Any, image_size: int = 224, tile: int = 2
) -> int:
    """Returns the multiplications for one image if 3x3 convolutions of stride 1 use Winograd.

    With output tiles of side `tile`, they need (tile + 2)^2 / (9 tile^2) of their multiply-adds:
    4/9 for F(2x2, 3x3), 1/4 for F(4x4, 3x3). Transforms and partly filled tiles are ignored, and
    all other operations count as in `count_macs`. For fused nets, this is the column "Wino MULs" of
    tables 4 and 5 in arXiv 2101.03697, which has larger numbers for three grouped baseline nets.
    """
    return _count(net, variables, image_size, tile)


def count_multiplications(function: Callable[..., Any], *args: Any, tile: int | None = None) -> int:
    """Counts the multiplications of a traced function, with Winograd if `tile` is given."""
    with compiling_for(target().devices, xla_only=True):
        return _macs(jax.make_jaxpr(function)(*args).jaxpr, tile)


def _count(net: nn.Module, variables: Any, image_size: int, tile: int | None) -> int:
    def count(batch: int) -> int:
        images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
        return count_multiplications(partial(net.apply, train=False), variables, images, tile=tile)

    return count(2) - count(1)  # cancels work that does not depend on the batch


def _macs(jaxpr: Any, tile: int | None) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            macs = equation.outvars[0].aval.size * (math.prod(kernel) // kernel[out_axis])
            if tile is not None and _suits_winograd(equation):
                macs = macs * (tile + 2) ** 2 // (9 * tile**2)
            total += macs
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            terms = math.prod(shape[axis] for axis in contracted)
            total += equation.outvars[0].aval.size * terms
        trips = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += trips * sum(_macs(inner, tile) for inner in _inner_jaxprs(equation.params))
    return total


def _suits_winograd(convolution: Any) -> bool:
    params = convolution.params
    spatial = params["dimension_numbers"].rhs_spec[2:]
    kernel = tuple(convolution.invars[1].aval.shape[axis] for axis in spatial)
    ones = params["window_strides"], params["lhs_dilation"], params["rhs_dilation"]
    return kernel == (3, 3) and all(value == (1, 1) for value in ones)


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs that an equation calls."""
    jaxprs = [getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(list(params.values()))]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]

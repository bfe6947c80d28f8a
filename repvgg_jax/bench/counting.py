"""What a net costs: parameters, multiply-adds, and multiplications under Winograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.runtime.devices import compiling_for, target


def count_parameters(variables: Any) -> int:
    """Numbers in `params`; running statistics are no parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_macs(net: nn.Module, variables: Any, image_size: int | tuple[int, int] = 224) -> int:
    """Multiply-adds of convolutions and matrix products for one image in evaluation mode.

    Counted in the traced program, so that it holds for any net; nothing is computed, and the
    variables may be `jax.ShapeDtypeStruct`s. Additions, BatchNorms and nonlinearities are free, as
    papers count; so is what is done once whatever the batch, as making a kernel of others is.
    """
    return _count(net, variables, image_size, None)


def count_winograd_multiplications(
    net: nn.Module, variables: Any, image_size: int | tuple[int, int] = 224, tile: int = 2
) -> int:
    """Multiplications for one image where 3x3 convolutions of stride 1 are Winograd's.

    For them (tile + 2)^2 / (9 tile^2) of the multiply-adds: 4/9 for F(2x2, 3x3), 1/4 for
    F(4x4, 3x3). All others, the transforms (constants) and partly filled tiles apart, are as in
    `count_macs`. For fused nets that is the column "Wino MULs" of the RepVGG paper (arXiv
    2101.03697, tables 4 and 5), three rows of grouped nets by others apart, which it prints higher.
    """
    return _count(net, variables, image_size, tile)


def count_multiplications(function: Callable[..., Any], *args: Any, tile: int | None = None) -> int:
    """Those of convolutions and matrix products in a function's trace, Winograd's with `tile`."""
    with compiling_for(target().devices, xla_only=True):
        return _macs(jax.make_jaxpr(function)(*args).jaxpr, tile)


def _count(
    net: nn.Module, variables: Any, image_size: int | tuple[int, int], tile: int | None
) -> int:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    forward = partial(net.apply, train=False)
    one, two = (
        count_multiplications(
            forward,
            variables,
            jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32),
            tile=tile,
        )
        for batch in (1, 2)
    )
    return two - one


def _macs(jaxpr: Any, tile: int | None) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            macs = math.prod(equation.outvars[0].aval.shape) * (
                math.prod(kernel) // kernel[out_axis]
            )
            if tile is not None and _suits_winograd(equation):
                macs = macs * (tile + 2) ** 2 // (9 * tile**2)
            total += macs
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(
                shape[axis] for axis in contracted
            )
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(_macs(inner, tile) for inner in _inner(equation.params))
    return total


def _suits_winograd(convolution: Any) -> bool:
    """3x3, strides 1, undilated; in groups or not."""
    params = convolution.params
    spatial = params["dimension_numbers"].rhs_spec[2:]
    kernel = tuple(convolution.invars[1].aval.shape[axis] for axis in spatial)
    ones = params["window_strides"], params["lhs_dilation"], params["rhs_dilation"]
    return kernel == (3, 3) and all(value == (1, 1) for value in ones)


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs that an equation calls."""
    values = [
        v for value in params.values() for v in (value if isinstance(value, tuple) else [value])
    ]
    closed = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in closed if hasattr(jaxpr, "eqns")]

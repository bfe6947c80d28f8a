"""What a net costs: parameters and multiply-adds."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax import onednn


def count_parameters(variables: Any) -> int:
    """Numbers in `params`; running statistics are no parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def count_macs(net: nn.Module, variables: Any, image_size: int | tuple[int, int] = 224) -> int:
    """Multiply-adds of convolutions and matrix products for one image in evaluation mode.

    Counted in the traced program, so that it holds for any net; nothing is computed, and the
    variables may be `jax.ShapeDtypeStruct`s. Additions, BatchNorms and nonlinearities are free, as
    papers count.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return _macs(jax.make_jaxpr(partial(net.apply, train=False))(variables, images).jaxpr)


def _macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            total += math.prod(equation.outvars[0].aval.shape) * (
                math.prod(kernel) // kernel[out_axis]
            )
        elif equation.primitive.name == "ffi_call":
            total += onednn.macs(*(v.aval.shape for v in (*equation.invars[:2], *equation.outvars)))
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(
                shape[axis] for axis in contracted
            )
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(map(_macs, _inner(equation.params)))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs that an equation calls."""
    values = [
        v for value in params.values() for v in (value if isinstance(value, tuple) else [value])
    ]
    closed = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in closed if hasattr(jaxpr, "eqns")]

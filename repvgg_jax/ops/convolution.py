"""Convolution of images, and the choice of its algorithm."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from repvgg_jax.errors import UsageError
from repvgg_jax.ops import onednn
from repvgg_jax.ops.algorithms import (
    Images,
    Kernel,
    Outputs,
    Window,
    add_bias_and_relu,
    convolution_is_replaced,
    convolve_with,
    fastest_algorithms,
    shifts,
    symmetric_padding,
    xla_convolution,
)
from repvgg_jax.ops.batch_norm import AnyArray
from repvgg_jax.runtime.devices import target

# "xla" is XLA's own convolution; "onednn" is a library for float32 on CPUs; "winograd" uses
# Winograd's algorithm for the passes that are faster with it on a CPU; "auto" is onednn if
# available, else xla, which has a smaller rounding error than F(4x4, 3x3).
ALGORITHMS = ("auto", "xla", "onednn", "winograd")


def check_algorithm(algorithm: str) -> None:
    """Raises UsageError if an algorithm is unknown, or unavailable on this machine."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"conv_algorithm={algorithm!r}: choose from {', '.join(ALGORITHMS)}")
    if algorithm == "onednn" and (problem := onednn.unavailable()):
        raise UsageError(f"conv_algorithm='onednn': {problem}")


def uses_onednn(algorithm: str, *arrays: AnyArray) -> bool:
    """Returns True if oneDNN computes convolutions of these arrays.

    All must be float32, of shapes without the symbolic dimensions of `jax.export`. "auto" selects
    oneDNN on a single CPU device only, because XLA cannot partition a library call over several
    devices.

    Raises:
      UsageError: as `check_algorithm`, and for "onednn" if the target is not a CPU.
    """
    check_algorithm(algorithm)
    if algorithm == "onednn" and not target().is_cpu:
        raise UsageError("conv_algorithm='onednn' runs on CPUs only; use auto")
    if xla_only(*arrays) or not all(array.dtype == jnp.float32 for array in arrays):
        return False
    if algorithm == "auto":
        return target().is_one_cpu and onednn.available()
    return algorithm == "onednn"


def engine(algorithm: str, dtype: Any) -> str:
    """Returns the library that computes convolutions of a type, such as "oneDNN 2023.2.0".

    Raises:
      UsageError: as `uses_onednn`.
    """
    if uses_onednn(algorithm, np.zeros(1, dtype)):
        return f"oneDNN {onednn.version()}"
    return "XLA, by Winograd's algorithm" if algorithm == "winograd" else "XLA"


def is_slow_in_loops(algorithm: str, dtype: Any) -> bool:
    """Returns True if convolutions in a loop of `lax` take many times as long as outside of one.

    Those of XLA:CPU do: in the body of a loop, the gradients are computed by naive code, in one
    thread (docs/notes/speed.md).
    """
    return target().is_cpu and not uses_onednn(algorithm, np.zeros(1, dtype))


def xla_only(*arrays: AnyArray) -> bool:
    """Returns True if `lax.conv_general_dilated` must compute the convolution of these arrays."""
    symbolic = not all(isinstance(side, int) for array in arrays for side in array.shape)
    return symbolic or target().xla_only or convolution_is_replaced()


def convolve(
    x: Images,
    kernel: Kernel,
    bias: Float[AnyArray, " cout"] | None = None,
    *,
    strides: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padding: str = "symmetric",
    apply_relu: bool = False,
    dtype: Any = jnp.float32,
    algorithm: str = "auto",
) -> Outputs:
    """Returns the cross-correlation of images padded by zeros with a kernel.

    "symmetric" pads each side by `dilation * (size // 2)`. This differs from "SAME": at stride 2,
    "SAME" pads even inputs on one side only. The center of a 3x3 kernel is then on another pixel
    than a parallel 1x1 branch reads, and the two cannot be fused.

    Example:
      >>> x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
      >>> convolve(x, kernel, strides=2).shape
      (1, 4, 4, 16)

    Args:
      x: images, [batch, height, width, cin].
      kernel: [kh, kw, cin / groups, cout], of odd height and width.
      bias: [cout], added to the result; None for no bias.
      strides: stride of both axes.
      groups: number of groups that the channels are split into.
      dilation: dilation of both axes of the kernel.
      padding: "symmetric", or "SAME" or "VALID" as in `jax.lax.conv`.
      apply_relu: whether to apply ReLU to the result; oneDNN fuses it into the convolution.
      dtype: compute type.
      algorithm: one of `ALGORITHMS`. oneDNN's convolutions support first-order gradients, but
        neither higher orders nor forward mode (`jax.jvp`); "xla" supports both.

    Raises:
      UsageError: as `uses_onednn`.
      TypeError: if the shapes do not match (some mismatches raise a ValueError).
    """
    x, kernel = _as_type(x, dtype), _as_type(kernel, dtype)
    bias = None if bias is None else _as_type(bias, dtype)
    if padding == "symmetric":
        margins = symmetric_padding(kernel.shape[:2], dilation)
    else:
        extent = [dilation * (side - 1) + 1 for side in kernel.shape[:2]]
        margins = tuple(lax.padtype_to_pads(x.shape[1:3], extent, (strides,) * 2, padding))
    window = Window(strides, groups, dilation, margins)
    if uses_onednn(algorithm, x, kernel):
        # This raises XLA's errors for mismatched shapes. oneDNN does not support empty results.
        y = jax.eval_shape(partial(xla_convolution, window=window), x, kernel)
        if y.size:
            return onednn.convolve(x, kernel, bias, window, y.shape, apply_relu)
    if algorithm == "winograd" and padding == "symmetric" and dilation == 1 and not xla_only(x):
        y = convolve_with(x, kernel, fastest_algorithms(x.shape, kernel.shape, strides), strides)
    else:
        y = xla_convolution(x, kernel, window)
    return add_bias_and_relu(y, bias, apply_relu)


def _as_type(array: AnyArray, dtype: Any) -> AnyArray:
    """Casts an array to `dtype`; leaves other objects, such as qwix's arrays, unchanged."""
    if isinstance(array, AnyArray) and array.dtype != dtype:
        return array.astype(dtype)
    return array


def convolve_by_matmul(
    x: Images, kernel: Float[AnyArray, "kh kw cin features"], *, dtype: Any
) -> Float[Array, "batch height width features"]:
    """Returns `convolve` with stride, groups and dilation 1, computed as one matrix product.

    Use it for layers under `lax.scan`, where XLA:CPU computes gradients of convolutions by a slow
    path (18 ms per layer, against 1.4 ms for the matrix product, at 64 x 4 x 4 x 32).
    """
    patches = jnp.concatenate(shifts(x.astype(dtype), kernel.shape[:2]), axis=-1)
    return patches @ kernel.astype(dtype).reshape(-1, kernel.shape[-1])

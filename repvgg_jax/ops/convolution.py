"""Convolutions of images, and which algorithm computes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.ops import onednn
from repvgg_jax.ops.algorithms import (
    convolve_with,
    fastest_algorithms,
    symmetric_padding,
    xla_convolution,
)
from repvgg_jax.runtime.devices import on_cpus, on_one_cpu

# "xla" is the compiler's own; "onednn" a tuned library for float32 on CPUs; "winograd" takes
# Winograd's filtering for the passes of a convolution where it was faster on a CPU; "auto" is
# onednn where it is there, else xla, which rounds less than F(4x4, 3x3).
ALGORITHMS = ("auto", "xla", "onednn", "winograd")

_BY_XLA_ALONE: ContextVar[bool] = ContextVar("xla_convolutions_only", default=False)


def check_algorithm(algorithm: str) -> None:
    """Raises UsageError for an unknown algorithm, or for one that this machine lacks."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"conv_algorithm={algorithm!r}: one of {', '.join(ALGORITHMS)}")
    if algorithm == "onednn" and (reason := onednn.unavailable()):
        raise UsageError(f"conv_algorithm='onednn': {reason}")


def uses_onednn(algorithm: str, *arrays: Array) -> bool:
    """Whether oneDNN computes with these arrays, which it does for float32.

    "auto" takes it on one CPU device: the compiler knows how to split its own
    convolutions over several, and a call that leaves the program it would run on one.

    Raises:
      UsageError: as `check_algorithm`, and for "onednn" where the program is for no CPU.
    """
    check_algorithm(algorithm)
    if algorithm == "onednn" and not on_cpus():
        raise UsageError("conv_algorithm='onednn' is for CPUs; auto takes it where it can")
    if _BY_XLA_ALONE.get() or not all(array.dtype == jnp.float32 for array in arrays):
        return False
    if algorithm == "auto":
        return on_one_cpu() and not onednn.unavailable()
    return algorithm == "onednn"


@contextmanager
def xla_convolutions_only() -> Iterator[None]:
    """What is traced within has XLA's own convolutions, whatever its nets say: to be counted."""
    token = _BY_XLA_ALONE.set(True)
    try:
        yield
    finally:
        _BY_XLA_ALONE.reset(token)


def convolve(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    strides: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padded: bool = True,
    rectified: bool = False,
    dtype: Any = jnp.float32,
    algorithm: str = "auto",
) -> Array:
    """Cross-correlation whose centre stays on the pixel it stands on.

    Every side is padded by `dilation * (size // 2)`. Never "SAME": at stride 2 that pads even
    inputs on one side only, which moves a 3x3's centre off the pixel that the 1x1 beside it reads,
    and the branches stop adding up to one kernel.

    Args:
      x: [batch, height, width, cin].
      kernel: [kh, kw, cin / groups, features].
      bias: [features], added where given.
      strides, groups, dilation: of both axes.
      padded: whether the margin is added; else the input has it.
      rectified: whether `relu` follows, which costs nothing where oneDNN computes.
      dtype: compute type.
      algorithm: one of `ALGORITHMS`. Where oneDNN computes, the first gradient is known, but
        neither a second one nor forward mode (`jax.jvp`); "xla" has all.

    Raises:
      UsageError: as `uses_onednn`.
      TypeError, ValueError: for shapes that don't go together.
    """
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    padding = symmetric_padding(kernel.shape[:2], dilation) if padded else [(0, 0), (0, 0)]
    bias = None if bias is None else bias.astype(dtype)
    if uses_onednn(algorithm, x, kernel) and _size(x, kernel, strides, groups, dilation, padding):
        window = onednn.Window(strides, groups, dilation, tuple(padding))
        return onednn.convolve(x, kernel, bias, window, rectified)
    if algorithm == "winograd" and padded and dilation == 1 and not _BY_XLA_ALONE.get():
        ways = fastest_algorithms(x.shape, kernel.shape, strides)
        y = convolve_with(x, kernel, ways, strides)
    else:
        y = xla_convolution(x, kernel, strides, groups, dilation, padding)
    y = y if bias is None else y + bias
    return relu(y) if rectified else y


def _size(x: Array, kernel: Array, *geometry: Any) -> int:
    """Numbers in the result; raises what XLA says of shapes that don't go together."""
    return jax.eval_shape(lambda x, k: xla_convolution(x, k, *geometry), x, kernel).size


@jax.custom_jvp
def relu(x: Array) -> Array:
    """max(x, 0). Its gradient is read off the result, which the next layer keeps anyway."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = relu(*primals)
    return y, jnp.where(y > 0, *tangents, 0)


def convolve_by_matmul(x: Array, kernel: Array, *, dtype: Any) -> Array:
    """`convolve` at stride, groups and dilation 1, as one product of patches and kernel.

    For layers under `lax.scan`: there XLA's CPU backend takes its slow path for a convolution's
    gradient (18 ms a layer against 1.4 ms so, at 64 x 4 x 4 x 32).
    """
    kh, kw, cin, cout = kernel.shape
    height, width = x.shape[1:3]
    padded = jnp.pad(x.astype(dtype), [(0, 0), *symmetric_padding((kh, kw), 1), (0, 0)])
    shifts = [padded[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)]
    patches = jnp.concatenate(shifts, axis=-1)
    return patches @ kernel.astype(dtype).reshape(kh * kw * cin, cout)

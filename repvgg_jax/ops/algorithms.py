"""One convolution, several ways to compute each of its three passes, and which to take where.

`convolve_with(x, kernel, ways)` is the convolution with a way of its own for the output, the input's
gradient and the kernel's gradient; `fastest_algorithms` names the fastest of each for a shape, as
measured on a CPU (docs/notes/speed.md). On a GPU or TPU XLA's own is the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax

from repvgg_jax.errors import UsageError
from repvgg_jax.ops import winograd
from repvgg_jax.ops.batch_norm import accumulation_dtype

PASS_ALGORITHMS = ("direct", "winograd2", "winograd4", "matmul")
_TILES = {"winograd2": 2, "winograd4": 4}


def symmetric_padding(size: tuple[int, ...], dilation: int) -> list[tuple[int, int]]:
    """Zeros on both sides of height and width that keep a kernel's centre on its pixel."""
    return [(dilation * (side // 2),) * 2 for side in size]


def xla_convolution(
    x: Array,
    kernel: Array,
    strides: int,
    groups: int,
    dilation: int,
    padding: Sequence[tuple[int, int]],
) -> Array:
    """XLA's own: x [batch, height, width, in], kernel [kh, kw, in / groups, out]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


class PassAlgorithms(NamedTuple):
    """A name of `PASS_ALGORITHMS` for each pass; `matmul` is for the kernel's gradient only."""

    forward: str = "direct"
    input_gradient: str = "direct"
    kernel_gradient: str = "direct"


def fastest_algorithms(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], strides: int = 1
) -> PassAlgorithms:
    """The fastest way of each pass on a CPU by measurement; "direct" where nothing else won.

    Measured in float32 over 4 to 56 pixels a side, 16 to 1280 channels, in a process that keeps
    its memory (docs/notes/speed_convolutions.md). It says nothing of accuracy: F(4x4, 3x3) rounds 3 to 8
    times as coarsely as XLA's own (2e-6 to 7e-6).

    Args:
      x_shape: [batch, height, width, in].
      kernel_shape: [height, width, in / groups, out].
    """
    batch, height, width, cin = x_shape
    narrower = min(cin, kernel_shape[3])
    if kernel_shape[:3] != (3, 3, cin) or batch * height * width < 512:
        return PassAlgorithms()
    if strides == 2:
        return PassAlgorithms(kernel_gradient="matmul") if narrower >= 48 else PassAlgorithms()
    if strides != 1 or narrower < 32:
        return PassAlgorithms()
    # A single tile an image leaves little to gain until the products are large.
    if narrower < 64 or (min(height, width) < 7 and narrower < 256):
        return PassAlgorithms(kernel_gradient="winograd4")
    return PassAlgorithms("winograd4", "winograd4", "winograd4")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_with(x: Array, kernel: Array, ways: PassAlgorithms, strides: int = 1) -> Array:
    """`convolution.convolve` (undilated, padded by half the kernel), each pass in its own way.

    Args:
      x: [batch, height, width, in].
      kernel: [kh, kw, in / groups, out]; odd sizes, and the groups follow from the shapes.

    Raises:
      UsageError: for a way that is unknown, or cannot compute that pass of that shape.
    """
    _check(kernel, ways, strides)
    if ways.forward in _TILES:
        return winograd.forward(x, kernel, _TILES[ways.forward])
    return _direct(x, kernel, strides)


def kernel_gradient_by_matmul(
    x: Array, dy: Array, kernel_shape: tuple[int, ...], strides: int = 1
) -> Array:
    """dK[i, j] = x[.., i + strides h, j + strides w, ..]^T dy[.., h, w, ..], a product a tap.

    Exact, for any odd kernel size; sums in float32 or wider.

    Args:
      x: [batch, height, width, in], padded here by half the kernel.
      dy: [batch, ceil(height / strides), ceil(width / strides), out].
      kernel_shape: [kh, kw, in / groups, out].

    Returns:
      [kh, kw, in / groups, out], of `x`'s type.
    """
    kh, kw, share, cout = kernel_shape
    groups, wide = x.shape[-1] // share, accumulation_dtype(x.dtype)
    _, height, width, _ = dy.shape
    padded = jnp.pad(x, [(0, 0), *symmetric_padding((kh, kw), 1), (0, 0)])
    errors = dy.reshape(-1, groups, cout // groups)

    def tap(i: int, j: int) -> Array:
        rows = lax.slice_in_dim(padded, i, i + (height - 1) * strides + 1, strides, 1)
        part = lax.slice_in_dim(rows, j, j + (width - 1) * strides + 1, strides, 2)
        part = part.reshape(-1, groups, share)
        if groups == 1:
            return jnp.einsum("ni,no->io", part[:, 0], errors[:, 0], preferred_element_type=wide)
        product = jnp.einsum("ngi,ngo->igo", part, errors, preferred_element_type=wide)
        return product.reshape(share, cout)

    taps = [tap(i, j) for i in range(kh) for j in range(kw)]
    return jnp.stack(taps).reshape(kernel_shape).astype(x.dtype)


def _forward_rule(
    x: Array, kernel: Array, ways: PassAlgorithms, strides: int
) -> tuple[Array, tuple[Array, Array]]:
    return convolve_with(x, kernel, ways, strides), (x, kernel)


def _backward_rule(
    ways: PassAlgorithms, strides: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    groups = x.shape[-1] // kernel.shape[2]
    if ways.input_gradient in _TILES:
        dx = winograd.input_gradient(dy, kernel, _TILES[ways.input_gradient], groups)
    else:
        like = ShapeDtypeStruct(x.shape, x.dtype)
        (dx,) = jax.linear_transpose(lambda x: _direct(x, kernel, strides), like)(dy)
    if ways.kernel_gradient in _TILES:
        dk = winograd.kernel_gradient(x, dy, _TILES[ways.kernel_gradient], groups)
    elif ways.kernel_gradient == "matmul":
        dk = kernel_gradient_by_matmul(x, dy, kernel.shape, strides)
    else:
        like = ShapeDtypeStruct(kernel.shape, kernel.dtype)
        (dk,) = jax.linear_transpose(lambda kernel: _direct(x, kernel, strides), like)(dy)
    return dx.astype(x.dtype), dk.astype(kernel.dtype)


convolve_with.defvjp(_forward_rule, _backward_rule)


def _direct(x: Array, kernel: Array, strides: int) -> Array:
    groups = x.shape[-1] // kernel.shape[2]
    return xla_convolution(x, kernel, strides, groups, 1, symmetric_padding(kernel.shape[:2], 1))


def _check(kernel: Array, ways: PassAlgorithms, strides: int) -> None:
    possible = {"direct"}
    if kernel.shape[:2] == (3, 3) and strides == 1:
        possible |= set(_TILES)
    for field, way in ways._asdict().items():
        allowed = possible | {"matmul"} if field == "kernel_gradient" else possible
        if way not in allowed:
            raise UsageError(
                f"convolve_with: {field}={way!r} for kernel {kernel.shape} at strides {strides}; "
                + " or ".join(sorted(allowed))
            )

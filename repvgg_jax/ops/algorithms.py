"""Algorithms for a convolution's three passes: output, gradient of the input, of the kernel.

`convolve_with` computes each pass by an algorithm of its own, and `fastest_algorithms` names the
fastest ones for a shape, as measured on a CPU (docs/notes/speed_convolutions.md). On a GPU or TPU
XLA's own convolution is the one to use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jaxtyping import Float

from repvgg_jax.errors import UsageError
from repvgg_jax.ops import winograd
from repvgg_jax.ops.batch_norm import AnyArray, accumulation_dtype

PASS_ALGORITHMS = ("direct", "winograd2", "winograd4", "matmul")
_TILES = {"winograd2": 2, "winograd4": 4}

Images = Float[AnyArray, "batch height width cin"]
Kernel = Float[AnyArray, "kh kw cin_per_group cout"]


def symmetric_padding(size: tuple[int, ...], dilation: int) -> list[tuple[int, int]]:
    """Returns the zeros before and after height and width that keep a kernel's center in place."""
    return [(dilation * (side // 2),) * 2 for side in size]


def xla_convolution(
    x: Images,
    kernel: Kernel,
    strides: int,
    groups: int,
    dilation: int,
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "batch new_height new_width cout"]:
    """Returns XLA's own convolution of NHWC images with an HWIO kernel."""
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
    """A name of `PASS_ALGORITHMS` for each pass; `matmul` computes the kernel's gradient only."""

    forward: str = "direct"
    input_gradient: str = "direct"
    kernel_gradient: str = "direct"


def fastest_algorithms(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], strides: int = 1
) -> PassAlgorithms:
    """Returns the fastest measured algorithm of each pass on a CPU; "direct" if none is faster.

    Measured in float32 over 4 to 56 pixels a side and 16 to 1280 channels, in a process that keeps
    freed memory. Accuracy plays no part: F(4x4, 3x3) has 3 to 8 times the rounding error of XLA's
    convolution (2e-6 to 7e-6).

    Args:
      x_shape: [batch, height, width, cin].
      kernel_shape: [kh, kw, cin / groups, cout].
      strides: stride of both axes.
    """
    batch, height, width, cin = x_shape
    narrower = min(cin, kernel_shape[3])
    if kernel_shape[:3] != (3, 3, cin) or batch * height * width < 512:
        return PassAlgorithms()
    if strides == 2:
        return PassAlgorithms(kernel_gradient="matmul") if narrower >= 48 else PassAlgorithms()
    if strides != 1 or narrower < 32:
        return PassAlgorithms()
    # One tile per image leaves little to gain until the products are large.
    if narrower < 64 or (min(height, width) < 7 and narrower < 256):
        return PassAlgorithms(kernel_gradient="winograd4")
    return PassAlgorithms("winograd4", "winograd4", "winograd4")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_with(
    x: Images, kernel: Kernel, algorithms: PassAlgorithms, strides: int = 1
) -> Float[Array, "batch new_height new_width cout"]:
    """Convolves as `convolution.convolve` does, computing each pass by its own algorithm.

    The convolution is undilated and padded by half the kernel; its groups follow from the shapes.
    Forward mode (`jax.jvp`) is not defined.

    Args:
      x: images, [batch, height, width, cin].
      kernel: [kh, kw, cin / groups, cout], of odd height and width.
      algorithms: algorithm of each pass.
      strides: stride of both axes.

    Raises:
      UsageError: if an algorithm is unknown or cannot compute that pass of that shape.
    """
    _check(x, kernel, algorithms, strides)
    if algorithms.forward in _TILES:
        return winograd.forward(x, kernel, _TILES[algorithms.forward])
    return _direct(x, kernel, strides)


def _forward_rule(
    x: AnyArray, kernel: AnyArray, algorithms: PassAlgorithms, strides: int
) -> tuple[Array, tuple[Array, Array]]:
    return convolve_with(x, kernel, algorithms, strides), (x, kernel)


def _backward_rule(
    algorithms: PassAlgorithms, strides: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    groups = x.shape[-1] // kernel.shape[2]
    if algorithms.input_gradient in _TILES:
        dx = winograd.input_gradient(dy, kernel, _TILES[algorithms.input_gradient], groups)
    else:
        like = ShapeDtypeStruct(x.shape, x.dtype)
        (dx,) = jax.linear_transpose(lambda x: _direct(x, kernel, strides), like)(dy)
    if algorithms.kernel_gradient in _TILES:
        dkernel = winograd.kernel_gradient(x, dy, _TILES[algorithms.kernel_gradient], groups)
    elif algorithms.kernel_gradient == "matmul":
        dkernel = kernel_gradient_by_matmul(x, dy, kernel.shape, strides)
    else:
        like = ShapeDtypeStruct(kernel.shape, kernel.dtype)
        (dkernel,) = jax.linear_transpose(lambda kernel: _direct(x, kernel, strides), like)(dy)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


convolve_with.defvjp(_forward_rule, _backward_rule)


def kernel_gradient_by_matmul(
    x: Images,
    dy: Float[Array, "batch new_height new_width cout"],
    kernel_shape: tuple[int, ...],
    strides: int = 1,
) -> Kernel:
    """Returns the kernel's gradient as one matrix product for each position in the kernel.

    dK[i, j] = x[.., i + strides h, j + strides w, ..]^T dy[.., h, w, ..], exact for any odd kernel
    size, of `x`'s type, with sums in float32 or wider.

    Args:
      x: images, [batch, height, width, cin], padded here by half the kernel.
      dy: gradient of the output, [batch, ceil(height / strides), ceil(width / strides), cout].
      kernel_shape: [kh, kw, cin / groups, cout].
      strides: stride of both axes.
    """
    kh, kw, cin, cout = kernel_shape
    groups, wide = x.shape[-1] // cin, accumulation_dtype(x.dtype)
    height, width = dy.shape[1:3]
    padded = jnp.pad(x, [(0, 0), *symmetric_padding((kh, kw), 1), (0, 0)])
    errors = dy.reshape(-1, groups, cout // groups)

    def position(i: int, j: int) -> Array:
        rows = lax.slice_in_dim(padded, i, i + (height - 1) * strides + 1, strides, 1)
        part = lax.slice_in_dim(rows, j, j + (width - 1) * strides + 1, strides, 2)
        part = part.reshape(-1, groups, cin)
        if groups == 1:
            return jnp.einsum("ni,no->io", part[:, 0], errors[:, 0], preferred_element_type=wide)
        product = jnp.einsum("ngi,ngo->igo", part, errors, preferred_element_type=wide)
        return product.reshape(cin, cout)

    products = jnp.stack([position(i, j) for i in range(kh) for j in range(kw)])
    return products.reshape(kernel_shape).astype(x.dtype)


def _direct(x: AnyArray, kernel: AnyArray, strides: int) -> Array:
    groups = x.shape[-1] // kernel.shape[2]
    return xla_convolution(x, kernel, strides, groups, 1, symmetric_padding(kernel.shape[:2], 1))


def _check(x: AnyArray, kernel: AnyArray, algorithms: PassAlgorithms, strides: int) -> None:
    cin, (cin_per_group, cout) = x.shape[-1], kernel.shape[2:]
    if cin % cin_per_group or cout % (cin // cin_per_group):
        raise UsageError(
            f"convolve_with: {cin} channels and kernel {kernel.shape} make no whole groups"
        )
    possible = {"direct"}
    if kernel.shape[:2] == (3, 3) and strides == 1:
        possible |= set(_TILES)
    for field, name in algorithms._asdict().items():
        allowed = possible | {"matmul"} if field == "kernel_gradient" else possible
        if name not in allowed:
            raise UsageError(
                f"convolve_with: {field}={name!r} is not possible for kernel {kernel.shape} at "
                f"strides {strides}; use {' or '.join(sorted(allowed))}"
            )

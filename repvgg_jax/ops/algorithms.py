"""Algorithms for the passes of a convolution: forward, input gradient and kernel gradient.

`convolve_with` computes each pass with a chosen algorithm, and `fastest_algorithms` returns the
fastest ones for a shape, as measured on a CPU (docs/notes/speed_convolutions.md). On GPUs and TPUs,
use XLA's convolution.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from repvgg_jax.errors import UsageError
from repvgg_jax.ops import winograd
from repvgg_jax.ops.batch_norm import AnyArray, accumulation_dtype, per_channel

_TILES = {"winograd2": 2, "winograd4": 4}

Images = Float[AnyArray, "batch height width cin"]
Batches = Iterable[Float[AnyArray, "_ height width cin"]]  # of different sizes
Kernel = Float[AnyArray, "kh kw cin_per_group cout"]
Outputs = Float[AnyArray, "batch new_height new_width cout"]


class Window(NamedTuple):
    """The geometry of a convolution; height and width have the same stride and dilation."""

    strides: int
    groups: int
    dilation: int
    padding: tuple[tuple[int, int], ...]  # ((top, bottom), (left, right))


def symmetric_padding(size: tuple[int, ...], dilation: int) -> tuple[tuple[int, int], ...]:
    """Returns ((top, bottom), (left, right)), with padding dilation * (side // 2) on each side."""
    return tuple((dilation * (side // 2),) * 2 for side in size)


_CONVOLUTION_CODE = lax.conv_general_dilated.__code__


def convolution_is_replaced() -> bool:
    """Returns True if a tool has put code of its own in place of `lax.conv_general_dilated`.

    Tools that quantize or convert a net do so while they trace it, and would miss a convolution
    that is computed in another way.
    """
    return getattr(lax.conv_general_dilated, "__code__", None) is not _CONVOLUTION_CODE


def xla_convolution(x: Images, kernel: Kernel, window: Window) -> Outputs:
    """Returns the convolution of NHWC images with an HWIO kernel, computed by XLA."""
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x,
        kernel,
        (window.strides,) * 2,
        window.padding,
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=lax.conv_dimension_numbers(x.shape, kernel.shape, layouts),
        feature_group_count=window.groups,
    )


def add_bias_and_relu(
    y: Outputs, bias: Float[AnyArray, " cout"] | None, apply_relu: bool
) -> Outputs:
    """Adds a bias by channel, if there is one, and applies ReLU if asked to."""
    y = y if bias is None else y + per_channel(bias, y)
    return jax.nn.relu(y) if apply_relu else y


class PassAlgorithms(NamedTuple):
    """The algorithm of each pass: direct, winograd2, winograd4 or matmul (kernel gradient only)."""

    forward: str = "direct"
    input_gradient: str = "direct"
    kernel_gradient: str = "direct"


def fastest_algorithms(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], strides: int = 1
) -> PassAlgorithms:
    """Returns the fastest algorithm of each pass on a CPU; "direct" if no other is faster.

    The choice is based on measurements in float32 with images of 4 to 56 pixels a side and 16 to
    1280 channels, in a process that keeps freed memory. It ignores accuracy: the rounding error of
    F(4x4, 3x3) is 2e-6 to 7e-6, which is 3 to 8 times that of XLA's convolution. Shapes are
    [batch, height, width, cin] and [kh, kw, cin / groups, cout].
    """
    batch, height, width, cin = x_shape
    narrower = min(cin, kernel_shape[3])
    if kernel_shape[:3] != (3, 3, cin) or batch * height * width < 512:
        return PassAlgorithms()
    if strides == 2 and narrower >= 48:
        return PassAlgorithms(kernel_gradient="matmul")
    if strides != 1 or narrower < 32:
        return PassAlgorithms()
    # With one tile per image, Winograd is faster for large matrix products only.
    if narrower < 64 or (min(height, width) < 7 and narrower < 256):
        return PassAlgorithms(kernel_gradient="winograd4")
    return PassAlgorithms("winograd4", "winograd4", "winograd4")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_with(
    x: Images, kernel: Kernel, algorithms: PassAlgorithms, strides: int = 1
) -> Outputs:
    """Returns `convolution.convolve` of the arguments, with a chosen algorithm for each pass.

    The convolution is not dilated and is padded by half the kernel. The number of groups is derived
    from the shapes. Forward-mode differentiation (`jax.jvp`) is not supported.

    Args:
      x: images, [batch, height, width, cin].
      kernel: [kh, kw, cin / groups, cout], of odd height and width.
      algorithms: algorithm of each pass.
      strides: stride of both axes.

    Raises:
      UsageError: if an algorithm is unknown or does not support the pass or the kernel's shape.
    """
    cin, (cin_per_group, cout) = x.shape[-1], kernel.shape[2:]
    if cin % cin_per_group or cout % (cin // cin_per_group):
        raise UsageError(
            f"convolve_with: no group count fits kernel {kernel.shape} and {cin} input channels"
        )
    tiled = list(_TILES) if kernel.shape[:2] == (3, 3) and strides == 1 else []
    for field, name in algorithms._asdict().items():
        matmul = ["matmul"] if field == "kernel_gradient" else []
        allowed = ["direct", *matmul, *tiled]
        if name not in allowed:
            raise UsageError(
                f"convolve_with: {field}={name!r} does not support kernel {kernel.shape} with "
                f"strides={strides}; use {' or '.join(allowed)}"
            )
    if algorithms.forward in _TILES:
        return winograd.forward(x, kernel, _TILES[algorithms.forward])
    return _direct(x, kernel, strides)


def _forward(x: Array, kernel: Array, *static: Any) -> tuple[Array, Any]:
    return convolve_with(x, kernel, *static), (x, kernel)


def _backward(algorithms: PassAlgorithms, strides: int, saved: Any, dy: Array) -> tuple[Any, Any]:
    x, kernel = saved
    groups = x.shape[-1] // kernel.shape[2]
    # XLA removes a direct gradient that is replaced below as dead code.
    dx, dkernel = jax.vjp(partial(_direct, strides=strides), x, kernel)[1](dy)
    if algorithms.input_gradient in _TILES:
        dx = winograd.input_gradient(dy, kernel, _TILES[algorithms.input_gradient], groups)
    if algorithms.kernel_gradient in _TILES:
        dkernel = winograd.kernel_gradient(x, dy, _TILES[algorithms.kernel_gradient], groups)
    elif algorithms.kernel_gradient == "matmul":
        dkernel = kernel_gradient_by_matmul(x, dy, kernel.shape, strides)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


convolve_with.defvjp(_forward, _backward)


def kernel_gradient_by_matmul(
    x: Images, dy: Outputs, kernel_shape: tuple[int, ...], strides: int = 1
) -> Kernel:
    """Returns the kernel's gradient, computed as one matrix product per position in the kernel.

    dK[i, j] = x[.., i + strides h, j + strides w, ..]^T dy[.., h, w, ..], where x is padded by half
    the kernel and dy has size ceil(height / strides), ceil(width / strides). The kernel shape is
    [kh, kw, cin / groups, cout] with odd kh and kw. Sums are float32 or wider.
    """
    *size, cin, cout = kernel_shape
    groups, wide = x.shape[-1] // cin, accumulation_dtype(x.dtype)
    errors = dy.reshape(-1, groups, cout // groups)

    def product(part: Array) -> Array:
        part = part.reshape(-1, groups, cin)
        if groups == 1:
            return jnp.einsum("ni,no->io", part[:, 0], errors[:, 0], preferred_element_type=wide)
        y = jnp.einsum("ngi,ngo->igo", part, errors, preferred_element_type=wide)
        return y.reshape(cin, cout)

    products = jnp.stack([product(part) for part in shifts(x, tuple(size), strides)])
    return products.reshape(kernel_shape).astype(x.dtype)


def shifts(x: Images, size: tuple[int, ...], strides: int = 1) -> list[Array]:
    """Returns the input pixels [batch, new_height, new_width, cin] under each kernel position."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, [(0, 0), *symmetric_padding(size, 1), (0, 0)])
    return [
        padded[:, i : i + height : strides, j : j + width : strides] for i, j in np.ndindex(size)
    ]


def _direct(x: AnyArray, kernel: AnyArray, strides: int) -> Array:
    groups, padding = x.shape[-1] // kernel.shape[2], symmetric_padding(kernel.shape[:2], 1)
    return xla_convolution(x, kernel, Window(strides, groups, 1, padding))

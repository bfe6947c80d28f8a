"""3x3 convolutions of stride 1 by Winograd's minimal filtering, F(2x2, 3x3) and F(4x4, 3x3).

An m x m tile of the output is A^T [(G g G^T) * (B^T d B)] A for a kernel g and the (m+2) x (m+2)
tile d of the input; summed over channels, `*` is one matrix product [tiles, in] x [in, out] for
each of the (m+2)^2 positions. A direct product takes 9 multiplications an output, m = 2 takes 4,
m = 4 takes 2.25. Both gradients have that form as well: the input's is the same convolution of dy
with the turned kernel, the kernel's is G^T [(B^T d B) * (A dy A^T)] G, summed over tiles.

In float32 the largest errors against float64, relative to the largest value, are 3e-7 to 5e-7
(m = 2) and 2e-6 to 7e-6 (m = 4) at 64 channels; XLA's own convolution on a CPU has 4e-7 to 2e-6,
a plain sum in order 2e-7. Lavin & Gray, arXiv 1509.09308, section 4.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from repvgg_jax.errors import UsageError
from repvgg_jax.ops.batch_norm import accumulation_dtype

# B^T, G and A^T by m. Tables differ in the signs of B^T's last row, and A^T's last column with it.
_DATA = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
_KERNEL = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
_OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, 1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd_conv(x: Array, kernel: Array, tile: int = 2) -> Array:
    """The 3x3 convolution of stride 1 that keeps height and width, by tiles of `tile` x `tile`.

    Both gradients are computed so too. The sums are float32 or wider: bfloat16 is widened first,
    and rounded at the end. Sizes that are no multiple of `tile` are padded and cropped. Forward
    mode (`jax.jvp`) is not defined.

    Args:
      x: [batch, height, width, in].
      kernel: [3, 3, in / groups, out]; the groups follow from the shapes.
      tile: m, 2 or 4.

    Returns:
      [batch, height, width, out], of `x`'s type.

    Raises:
      UsageError: for another kernel size or tile, or channels that make no groups.
    """
    return forward(x, kernel, tile)


def forward(x: Array, kernel: Array, tile: int) -> Array:
    """`winograd_conv` without a gradient of its own."""
    groups = _check(x, kernel, tile)
    wide = accumulation_dtype(x.dtype)
    y = _correlate(x.astype(wide), _grouped(kernel.astype(wide), groups), tile, "sngi,sgio->sngo")
    return y.astype(x.dtype)


def input_gradient(dy: Array, kernel: Array, tile: int, groups: int = 1) -> Array:
    """The gradient [batch, height, width, in] of `winograd_conv` with respect to x."""
    wide = accumulation_dtype(dy.dtype)
    turned = _grouped(kernel.astype(wide), groups)[::-1, ::-1]
    # Contracted over outputs as the kernel lies: transposing it would cost more than the product.
    return _correlate(dy.astype(wide), turned, tile, "sngo,sgio->sngi").astype(dy.dtype)


def kernel_gradient(x: Array, dy: Array, tile: int, groups: int = 1) -> Array:
    """The gradient [3, 3, in / groups, out] of `winograd_conv` with respect to the kernel."""
    wide = accumulation_dtype(x.dtype)
    (_, height, width, cin), cout = x.shape, dy.shape[-1]
    down, across = -(-height // tile), -(-width // tile)
    padding = [(0, 0), (0, down * tile - height), (0, across * tile - width), (0, 0)]
    padded = jnp.pad(dy.astype(wide), padding)
    to_tile = np.transpose(_OUTPUT[tile])
    rows = _combine(to_tile, [padded[:, i::tile] for i in range(tile)])
    rows = lax.optimization_barrier(jnp.stack(rows))
    errors = _combine(to_tile, [rows[:, :, :, j::tile] for j in range(tile)])
    columns = [
        _products("sngi,sngo->sgio", _split(v, groups), _split(e, groups), groups)
        for v, e in zip(_data_tiles(x.astype(wide), tile), errors, strict=True)
    ]
    matrix = np.kron(_KERNEL[tile], _KERNEL[tile]).T.astype(wide)
    summed = _matmul(matrix, jnp.stack(columns, 1).reshape((tile + 2) ** 2, -1))
    summed = summed.reshape(3, 3, groups, cin // groups, cout // groups)
    return jnp.moveaxis(summed, 2, 3).reshape(3, 3, cin // groups, cout).astype(x.dtype)


def _forward_rule(x: Array, kernel: Array, tile: int) -> tuple[Array, tuple[Array, Array]]:
    return forward(x, kernel, tile), (x, kernel)


def _backward_rule(tile: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    groups = x.shape[-1] // kernel.shape[2]
    dx = input_gradient(dy, kernel, tile, groups).astype(x.dtype)
    return dx, kernel_gradient(x, dy, tile, groups).astype(kernel.dtype)


winograd_conv.defvjp(_forward_rule, _backward_rule)


def _correlate(x: Array, kernel: Array, tile: int, contraction: str) -> Array:
    """x [batch, height, width, ...] with kernel [3, 3, groups, in, out]."""
    batch, height, width, _ = x.shape
    down, across = -(-height // tile), -(-width // tile)
    side, groups = tile + 2, kernel.shape[2]
    matrix = np.kron(_KERNEL[tile], _KERNEL[tile]).astype(x.dtype)
    kernels = _matmul(matrix, kernel.reshape(9, -1)).reshape(side, side, *kernel.shape[2:])
    columns = [
        _products(contraction, _split(v, groups), kernels[:, j], groups)
        for j, v in enumerate(_data_tiles(x, tile))
    ]
    columns = [column.reshape(side, batch, down, across, -1) for column in columns]
    # Columns come together and are cropped before rows are made: XLA's CPU backend takes up to
    # twice as long for the whole convolution the other way round.
    rows = jnp.stack(_combine(_OUTPUT[tile], columns), 4)
    rows = rows.reshape(side, batch, down, across * tile, -1)[:, :, :, :width]
    rows = _combine(_OUTPUT[tile], list(lax.optimization_barrier(rows)))
    return jnp.stack(rows, 2).reshape(batch, down * tile, width, -1)[:, :height]


def _data_tiles(x: Array, tile: int) -> list[Array]:
    """B^T d B: a list over columns j of [rows i, batch, tiles down, tiles across, channels]."""
    _, height, width, _ = x.shape
    down, across = -(-height // tile), -(-width // tile)
    side = tile + 2
    padding = [(0, 0), (1, down * tile + 1 - height), (1, across * tile + 1 - width), (0, 0)]
    padded = jnp.pad(x, padding)

    def every(array: Array, start: int, count: int, axis: int) -> Array:
        return lax.slice_in_dim(array, start, start + (count - 1) * tile + 1, tile, axis)

    rows = jnp.stack(_combine(_DATA[tile], [every(padded, i, down, 1) for i in range(side)]))
    # The barrier keeps XLA from computing each row anew for each of its columns.
    rows = lax.optimization_barrier(rows)
    return _combine(_DATA[tile], [every(rows, j, across, 3) for j in range(side)])


def _combine(matrix: list[list[float]] | np.ndarray, arrays: list[Array]) -> list[Array]:
    """matrix @ arrays, written as additions: most of the matrix is 0, 1 and -1."""
    sums = []
    for row in np.asarray(matrix, float).tolist():
        (c, array), *terms = [(c, a) for c, a in zip(row, arrays, strict=True) if c]
        total = array if c == 1 else c * array
        for c, array in terms:
            scaled = array if abs(c) == 1 else abs(c) * array
            total = total + scaled if c > 0 else total - scaled
        sums.append(total)
    return sums


def _split(array: Array, groups: int) -> Array:
    """[rows, batch, down, across, channels] as [rows, tiles, groups, channels of each]."""
    return array.reshape(array.shape[0], -1, groups, array.shape[-1] // groups)


def _products(contraction: str, a: Array, b: Array, groups: int) -> Array:
    """The products of a column of positions: s rows, n tiles, g groups, i inputs, o outputs."""
    if groups == 1:
        # XLA's CPU backend loses a factor of ten to an axis of one group inside its products.
        first, second = contraction.split("->")[0].split(",")
        a, b = a.squeeze(first.index("g")), b.squeeze(second.index("g"))
        contraction = contraction.replace("g", "")
    return jnp.einsum(contraction, a, b, precision=lax.Precision.HIGHEST)


def _matmul(matrix: np.ndarray, array: Array) -> Array:
    return jnp.matmul(matrix, array, precision=lax.Precision.HIGHEST)


def _grouped(kernel: Array, groups: int) -> Array:
    """[3, 3, in / groups, out] as [3, 3, groups, in / groups, out / groups]."""
    kh, kw, cin, cout = kernel.shape
    return jnp.moveaxis(kernel.reshape(kh, kw, cin, groups, cout // groups), 3, 2)


def _check(x: Array, kernel: Array, tile: int) -> int:
    """The number of groups."""
    if tile not in _DATA:
        raise UsageError(f"winograd_conv: tile={tile}; 2 or 4")
    if kernel.ndim != 4 or kernel.shape[:2] != (3, 3):
        raise UsageError(f"winograd_conv: kernel {kernel.shape}; [3, 3, in / groups, out]")
    cin, (share, cout) = x.shape[-1], kernel.shape[2:]
    if cin % share or cout % (cin // share):
        raise UsageError(
            f"winograd_conv: {cin} channels and kernel {kernel.shape} make no whole groups"
        )
    return cin // share

"""3x3 convolutions of stride 1 by Winograd's minimal filtering, F(2x2, 3x3) and F(4x4, 3x3).

An m x m tile of the output is A^T [(G g G^T) * (B^T d B)] A for a kernel g and the (m+2) x (m+2)
tile d of the input. Summed over channels, `*` is a matrix product [tiles, cin] x [cin, cout] for
each of the (m+2)^2 positions. A direct product takes 9 multiplications per output, m = 2 takes 4,
and m = 4 takes 2.25. Both gradients have this form too: the input's is the same convolution of dy
with the rotated kernel, the kernel's is G^T [(B^T d B) * (A dy A^T)] G, summed over tiles.

In float32 the largest errors against float64, relative to the largest value, are 3e-7 to 5e-7
(m = 2) and 2e-6 to 7e-6 (m = 4) at 64 channels; XLA's own convolution on a CPU has 4e-7 to 2e-6,
a plain sum in order 2e-7. Sums are float32 or wider: bfloat16 is widened first and rounded at the
end. Sides that are not a multiple of m are padded and cropped. Lavin & Gray, arXiv 1509.09308,
section 4.

`ops.algorithms.convolve_with` combines these passes into a convolution with its gradients.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from repvgg_jax.ops.batch_norm import AnyArray, accumulation_dtype

# B^T, G and A^T by m. Published tables differ in the signs of B^T's last row and A^T's last column.
_DATA = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]], float),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        float,
    ),
}
_KERNEL = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], float),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        float,
    ),
}
_OUTPUT = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, 1]], float),
    4: np.array(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float
    ),
}

Images = Float[AnyArray, "batch height width cin"]
Outputs = Float[AnyArray, "batch height width cout"]
Kernel = Float[Array, "3 3 cin_per_group cout"]


def forward(x: Images, kernel: Kernel, tile: int) -> Outputs:
    """Returns the convolution with height and width kept, by tiles of `tile` (2 or 4) squared."""
    wide, groups = accumulation_dtype(x.dtype), x.shape[-1] // kernel.shape[2]
    kernel = _grouped(kernel.astype(wide), groups)
    return _correlate(x.astype(wide), kernel, tile, "sngi,sgio->sngo").astype(x.dtype)


def input_gradient(dy: Outputs, kernel: Kernel, tile: int, groups: int = 1) -> Images:
    """Returns the gradient of the input for the gradient `dy` of the output."""
    wide = accumulation_dtype(dy.dtype)
    rotated = _grouped(kernel.astype(wide), groups)[::-1, ::-1]
    # Contracts over outputs in the kernel's layout: a transpose would cost more than the product.
    return _correlate(dy.astype(wide), rotated, tile, "sngo,sgio->sngi").astype(dy.dtype)


def kernel_gradient(x: Images, dy: Outputs, tile: int, groups: int = 1) -> Kernel:
    """Returns the gradient of the kernel for the gradient `dy` of the output."""
    wide = accumulation_dtype(x.dtype)
    (_, height, width, cin), cout = x.shape, dy.shape[-1]
    down, across = -(-height // tile), -(-width // tile)
    padding = [(0, 0), (0, down * tile - height), (0, across * tile - width), (0, 0)]
    padded = jnp.pad(dy.astype(wide), padding)
    to_tile = _OUTPUT[tile].T
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


def _correlate(x: Array, kernel: Array, tile: int, contraction: str) -> Array:
    """Convolves x [batch, height, width, ...] with a kernel [3, 3, groups, cin, cout]."""
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
    # Combining and cropping columns before rows is up to twice as fast on XLA:CPU as the reverse.
    rows = jnp.stack(_combine(_OUTPUT[tile], columns), 4)
    rows = rows.reshape(side, batch, down, across * tile, -1)[:, :, :, :width]
    rows = _combine(_OUTPUT[tile], list(lax.optimization_barrier(rows)))
    return jnp.stack(rows, 2).reshape(batch, down * tile, width, -1)[:, :height]


def _data_tiles(x: Array, tile: int) -> list[Array]:
    """Returns B^T d B: for each column j, [rows i, batch, tiles down, tiles across, channels]."""
    _, height, width, _ = x.shape
    down, across = -(-height // tile), -(-width // tile)
    side = tile + 2
    padding = [(0, 0), (1, down * tile + 1 - height), (1, across * tile + 1 - width), (0, 0)]
    padded = jnp.pad(x, padding)

    def every(array: Array, start: int, count: int, axis: int) -> Array:
        return lax.slice_in_dim(array, start, start + (count - 1) * tile + 1, tile, axis)

    rows = jnp.stack(_combine(_DATA[tile], [every(padded, i, down, 1) for i in range(side)]))
    # The barrier keeps XLA from recomputing each row for each of its columns.
    rows = lax.optimization_barrier(rows)
    return _combine(_DATA[tile], [every(rows, j, across, 3) for j in range(side)])


def _combine(matrix: np.ndarray, arrays: list[Array]) -> list[Array]:
    """Returns matrix @ arrays as additions, since most of the matrix is 0, 1 and -1."""
    sums = []
    for row in matrix.tolist():
        (c, array), *terms = [(c, a) for c, a in zip(row, arrays, strict=True) if c]
        total = array if c == 1 else c * array
        for c, array in terms:
            scaled = array if abs(c) == 1 else abs(c) * array
            total = total + scaled if c > 0 else total - scaled
        sums.append(total)
    return sums


def _split(array: Array, groups: int) -> Array:
    """Reshapes [rows, batch, down, across, channels] to [rows, tiles, groups, channels]."""
    return array.reshape(array.shape[0], -1, groups, array.shape[-1] // groups)


def _products(contraction: str, a: Array, b: Array, groups: int) -> Array:
    """Returns a column's products: s rows, n tiles, g groups, i inputs, o outputs."""
    if groups == 1:
        # An axis of size 1 inside a batched product makes it ten times as slow on XLA:CPU.
        first, second = contraction.split("->")[0].split(",")
        a, b = a.squeeze(first.index("g")), b.squeeze(second.index("g"))
        contraction = contraction.replace("g", "")
    return jnp.einsum(contraction, a, b, precision=lax.Precision.HIGHEST)


def _matmul(matrix: np.ndarray, array: Array) -> Array:
    return jnp.matmul(matrix, array, precision=lax.Precision.HIGHEST)


def _grouped(kernel: Array, groups: int) -> Array:
    """Reshapes [3, 3, cin / groups, cout] to [3, 3, groups, cin / groups, cout / groups]."""
    kh, kw, cin, cout = kernel.shape
    return jnp.moveaxis(kernel.reshape(kh, kw, cin, groups, cout // groups), 3, 2)

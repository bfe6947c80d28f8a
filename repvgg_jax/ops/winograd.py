"""3x3 convolutions of stride 1 by Winograd's minimal filtering (arXiv 1509.09308, section 4).

F(m x m, 3x3) with m = 2 or 4 computes an m x m tile of the output as A^T [(G g G^T) * (B^T d B)] A,
where g is a kernel and d is an (m+2) x (m+2) tile of the input. Summed over channels, `*` is a
matrix product [tiles, cin] x [cin, cout] for each of the (m+2)^2 positions. A direct convolution
needs 9 multiplications per output, m = 2 needs 4, and m = 4 needs 2.25. Both gradients have the
same form: the input gradient is the convolution of dy with the rotated kernel, and the kernel
gradient is G^T [(B^T d B) * (A dy A^T)] G, summed over tiles.

The largest errors of float32 against float64, relative to the largest value, at 64 channels: 3e-7
to 5e-7 for m = 2, 2e-6 to 7e-6 for m = 4, 4e-7 to 2e-6 for XLA's convolution on a CPU, and 2e-7 for
sequential summation. Sums are float32 or wider; a bfloat16 result is rounded at the end. If height
or width is not a multiple of m, the input is padded and the output cropped.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from repvgg_jax.ops.batch_norm import AnyArray, accumulation_dtype
from repvgg_jax.runtime.compilation import barrier

# B^T, G and A^T for each m. Some publications negate B^T's last row and A^T's last column.
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
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    4: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
}
_OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, 1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}

Images = Float[AnyArray, "batch height width cin"]
Outputs = Float[AnyArray, "batch height width cout"]
Kernel = Float[Array, "3 3 cin_per_group cout"]


def forward(x: Images, kernel: Kernel, tile: int) -> Outputs:
    """Returns the padded convolution, computed in tiles of `tile` x `tile` outputs (2 or 4)."""
    return _correlate(x, kernel, tile, x.shape[-1] // kernel.shape[2], "sngi,sgio->sngo")


def input_gradient(dy: Outputs, kernel: Kernel, tile: int, groups: int = 1) -> Images:
    """Returns the gradient of the input, given the gradient `dy` of the output."""
    # Contracting over the last axis of the kernel avoids a transpose, which is slower.
    return _correlate(dy, kernel[::-1, ::-1], tile, groups, "sngo,sgio->sngi")


def kernel_gradient(x: Images, dy: Outputs, tile: int, groups: int = 1) -> Kernel:
    """Returns the gradient of the kernel, given the gradient `dy` of the output."""
    wide = accumulation_dtype(x.dtype)
    (_, height, width, cin), cout = x.shape, dy.shape[-1]
    padding = [(0, 0), (0, -height % tile), (0, -width % tile), (0, 0)]
    padded = jnp.pad(dy.astype(wide), padding)
    to_tile = np.transpose(_OUTPUT[tile]).tolist()
    rows = jnp.stack(_combine(to_tile, [padded[:, i::tile] for i in range(tile)]))
    rows = barrier(rows)
    errors = _combine(to_tile, [rows[:, :, :, j::tile] for j in range(tile)])
    columns = [
        _products("sngi,sngo->sgio", v, _split(e, groups), groups)
        for v, e in zip(_data_tiles(x.astype(wide), tile, groups), errors, strict=True)
    ]
    matrix = np.kron(_KERNEL[tile], _KERNEL[tile]).T.astype(wide)
    columns = jnp.stack(columns, 1).reshape((tile + 2) ** 2, -1)
    summed = jnp.matmul(matrix, columns, precision="highest")
    summed = summed.reshape(3, 3, groups, cin // groups, cout // groups)
    return jnp.moveaxis(summed, 2, 3).reshape(3, 3, cin // groups, cout).astype(x.dtype)


def _correlate(x: AnyArray, kernel: AnyArray, tile: int, groups: int, contraction: str) -> Array:
    batch, height, width, _ = x.shape
    side, wide = tile + 2, accumulation_dtype(x.dtype)
    tiles = (side, batch, -(-height // tile), -(-width // tile))
    matrix = np.kron(_KERNEL[tile], _KERNEL[tile]).astype(wide)
    kernel = kernel.astype(wide).reshape(3, 3, kernel.shape[2], groups, -1)
    kernel = jnp.moveaxis(kernel, 3, 2)  # [3, 3, groups, cin / groups, cout / groups]
    kernels = jnp.matmul(matrix, kernel.reshape(9, -1), precision="highest")
    kernels = kernels.reshape(side, side, *kernel.shape[2:])
    columns = [
        _products(contraction, v, kernels[:, j], groups).reshape(*tiles, -1)
        for j, v in enumerate(_data_tiles(x.astype(wide), tile, groups))
    ]
    # On XLA:CPU, combining and cropping columns first is up to twice as fast as rows first.
    rows = jnp.stack(_combine(_OUTPUT[tile], columns), 4)
    rows = rows.reshape(*rows.shape[:3], -1, rows.shape[-1])[:, :, :, :width]
    rows = _combine(_OUTPUT[tile], list(barrier(rows)))
    y = jnp.stack(rows, 2).reshape(batch, -1, width, rows[0].shape[-1])
    return y[:, :height].astype(x.dtype)


def _data_tiles(x: Array, tile: int, groups: int) -> list[Array]:
    """Returns B^T d B as a list over columns j of arrays [rows i, tiles, groups, channels]."""
    _, height, width, _ = x.shape
    down, across = -(-height // tile) * tile, -(-width // tile) * tile
    padded = jnp.pad(x, [(0, 0), (1, down + 1 - height), (1, across + 1 - width), (0, 0)])
    rows = [padded[:, i : i + down : tile] for i in range(tile + 2)]
    # The barrier keeps XLA from recomputing each row for each of its columns.
    rows = barrier(jnp.stack(_combine(_DATA[tile], rows)))
    columns = [rows[:, :, :, j : j + across : tile] for j in range(tile + 2)]
    return [_split(column, groups) for column in _combine(_DATA[tile], columns)]


def _combine(matrix: list[list[int]], arrays: list[Array]) -> list[Array]:
    """Returns matrix @ arrays, computed by additions, since most entries are 0, 1 or -1."""
    sums = []
    for row in matrix:
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
    """Returns the einsum over axes s (rows), n (tiles), g (groups), i (inputs) and o (outputs)."""
    if groups == 1:
        # On XLA:CPU, an axis of size 1 makes a batched matrix product ten times slower.
        first, second = contraction.split("->")[0].split(",")
        a, b = a.squeeze(first.index("g")), b.squeeze(second.index("g"))
        contraction = contraction.replace("g", "")
    return jnp.einsum(contraction, a, b, precision="highest")

"""Compares algorithms for the three passes of a 3x3 convolution with XLA's own.

  python -m experiments.benchmarks.convolutions [--keep_memory] [--shapes=64x8x128,16x14x192x192x2]

A shape is batch x side x in channels [x out channels [x strides]]. The algorithms of a pass run
interleaved in one process. The table has XLA's milliseconds (median) and, for each other algorithm,
the median ratio of XLA's time to its time in the same round: above 1 is faster than XLA. The
results of all algorithms are compared with XLA's.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.benchmarks.flags import shape_of
from experiments.sweeps.flags import Parser, run_command
from repvgg_jax.bench.timing import ratio, time_interleaved
from repvgg_jax.errors import UsageError
from repvgg_jax.ops import winograd
from repvgg_jax.ops.algorithms import kernel_gradient_by_matmul, shifts
from repvgg_jax.ops.convolution import convolve
from repvgg_jax.runtime.devices import keep_freed_memory

SHAPES = (
    "64x32x16,64x32x32,64x16x32,64x16x64,64x8x64,64x8x128,64x4x128,64x4x256,16x56x48,16x28x96,"
    "16x14x192,16x7x192x1280,8x28x128,8x14x256,64x32x32x64x2,64x16x64x128x2,16x56x48x96x2,"
    "16x28x96x192x2"
)
OTHERS = ("im2col", "shifted", "F2", "F4")
Algorithm = Callable[..., Array]


def direct(x: Array, kernel: Array, strides: int) -> Array:
    """Returns XLA's convolution."""
    return convolve(x, kernel, strides=strides, dtype=x.dtype, algorithm="xla")


def patches(x: Array, strides: int) -> Array:
    """Returns the 3x3 neighborhoods of pixels, [batch, height, width, 9 * channels]."""
    return jnp.concatenate(shifts(x, (3, 3), strides), -1)


def im2col(x: Array, kernel: Array, strides: int) -> Array:
    """Returns the convolution as one matrix product of patches."""
    return patches(x, strides) @ kernel.reshape(-1, kernel.shape[-1])


def shifted(x: Array, kernel: Array, strides: int) -> Array:
    """Returns the convolution as the sum of nine matrix products."""
    taps = jnp.split(patches(x, strides), 9, -1)
    return sum(tap @ k for tap, k in zip(taps, kernel.reshape(9, *kernel.shape[2:]), strict=True))


def im2col_gradient(x: Array, dy: Array, strides: int) -> Array:
    """Returns the kernel's gradient as one matrix product."""
    errors = dy.reshape(-1, dy.shape[-1])
    columns = patches(x, strides).reshape(errors.shape[0], -1)
    product = lax.dot_general(columns, errors, (((0,), (0,)), ((), ())))
    return product.reshape(3, 3, x.shape[-1], dy.shape[-1])


def passes(
    x: Array, kernel: Array, dy: Array, strides: int
) -> dict[str, tuple[dict[str, Algorithm], tuple[Array, Array]]]:
    """Returns the algorithms of each pass, XLA's first, and their arguments."""

    def direct_input(dy: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: direct(x, kernel, strides), x)(dy)[0]

    def direct_kernel(x: Array, dy: Array) -> Array:
        return jax.linear_transpose(lambda kernel: direct(x, kernel, strides), kernel)(dy)[0]

    output: dict[str, Algorithm] = {
        "direct": partial(direct, strides=strides),
        "im2col": partial(im2col, strides=strides),
        "shifted": partial(shifted, strides=strides),
    }
    of_input: dict[str, Algorithm] = {"direct": direct_input}
    of_kernel: dict[str, Algorithm] = {
        "direct": direct_kernel,
        "im2col": partial(im2col_gradient, strides=strides),
        "shifted": partial(kernel_gradient_by_matmul, kernel_shape=kernel.shape, strides=strides),
    }
    if strides == 1:
        of_input["im2col"] = lambda dy, k: im2col(dy, k[::-1, ::-1].swapaxes(2, 3), 1)
        for tile in (2, 4):
            output[f"F{tile}"] = partial(winograd.forward, tile=tile)
            of_input[f"F{tile}"] = partial(winograd.input_gradient, tile=tile)
            of_kernel[f"F{tile}"] = partial(winograd.kernel_gradient, tile=tile)
    return {
        "output": (output, (x, kernel)),
        "d input": (of_input, (dy, kernel)),
        "d kernel": (of_kernel, (x, dy)),
    }


def measure(
    algorithms: dict[str, Algorithm], arguments: tuple[Array, Array], seconds: float
) -> dict[str, float]:
    """Returns XLA's milliseconds as `direct`, and the speedup of each other algorithm over it."""
    compiled = {n: jax.jit(f).lower(*arguments).compile() for n, f in algorithms.items()}
    expected = np.asarray(compiled["direct"](*arguments))
    for name, run in compiled.items():
        error = np.abs(run(*arguments) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, f"{name} is off by {error:.1e}"
    runs = {name: partial(run, *arguments) for name, run in compiled.items()}
    round_seconds = sum(measured for [measured] in time_interleaved(runs, rounds=1).values())
    times = time_interleaved(runs, rounds=max(7, round(seconds / round_seconds)))
    ratios = {name: ratio(times, "direct", name) for name in times}
    return ratios | {"direct": 1e3 * statistics.median(times["direct"])}


def main() -> None:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--keep_memory", action="store_true", help="keep freed memory (glibc)")
    parser.add_argument(
        "--shapes",
        default=SHAPES,
        help="batch x side x channels [x outputs [x stride]], comma-separated",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="time per pass and shape")
    options = parser.parse_args()
    if options.keep_memory and not keep_freed_memory():
        raise UsageError("--keep_memory needs glibc's mallopt")
    shapes = {shape: shape_of(shape, 3, "--shapes", most=5) for shape in options.shapes.split(",")}
    print(f"| shape | pass | XLA, ms | {' | '.join(OTHERS)} |\n|---|---|{'---:|' * 5}")
    for shape, (batch, side, channels, *others) in shapes.items():
        features = others[0] if others else channels
        strides = others[1] if len(others) > 1 else 1
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(batch, side, side, channels)), jnp.float32)
        scale = (9 * channels) ** -0.5
        kernel = jnp.asarray(scale * rng.normal(size=(3, 3, channels, features)), jnp.float32)
        dy = jnp.asarray(rng.normal(size=direct(x, kernel, strides).shape), jnp.float32)
        for name, (algorithms, arguments) in passes(x, kernel, dy, strides).items():
            found = measure(algorithms, arguments, options.seconds)
            cells = [f"{found[other]:.2f}" if other in found else "" for other in OTHERS]
            line = " | ".join([shape, name, f"{found['direct']:.1f}", *cells])
            print(f"| {line} |", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Ways to compute a 3x3 convolution's three passes, timed against XLA's own on this machine.

  python -m experiments.benchmarks.convolutions [--keep_memory] [--shapes=64x8x128,16x14x192x192x2]

A shape is batch x side x in channels [x out channels [x strides]]. The ways of a pass take turns
in one process; printed are XLA's milliseconds (median) and, for each other way, the median of the
ratios to XLA's time in the same turn: above 1 is faster. Every way is checked against XLA's result.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import Array, lax

from repvgg_jax.ops import winograd
from repvgg_jax.ops.algorithms import kernel_gradient_by_matmul
from repvgg_jax.ops.convolution import convolve
from repvgg_jax.runtime.devices import keep_freed_memory

KEEP = flags.DEFINE_bool("keep_memory", False, "freed memory stays with the process (glibc)")
SHAPES = flags.DEFINE_list(
    "shapes",
    "64x32x16,64x32x32,64x16x32,64x16x64,64x8x64,64x8x128,64x4x128,64x4x256,16x56x48,16x28x96,"
    "16x14x192,16x7x192x1280,8x28x128,8x14x256,64x32x32x64x2,64x16x64x128x2,16x56x48x96x2,"
    "16x28x96x192x2",
    "to measure",
)
SECONDS = flags.DEFINE_float("seconds", 2.0, "a pass and shape")
Way = Callable[..., Array]


def direct(x: Array, kernel: Array, strides: int) -> Array:
    return convolve(x, kernel, strides=strides, dtype=x.dtype, algorithm="xla")


def patches(x: Array, strides: int) -> Array:
    """[batch, height, width, 9 * channels]."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    rows = [padded[:, i : i + height : strides] for i in range(3)]
    return jnp.concatenate([r[:, :, j : j + width : strides] for r in rows for j in range(3)], -1)


def im2col(x: Array, kernel: Array, strides: int) -> Array:
    return patches(x, strides) @ kernel.reshape(-1, kernel.shape[-1])


def shifted(x: Array, kernel: Array, strides: int) -> Array:
    taps = jnp.split(patches(x, strides), 9, -1)
    return sum(tap @ k for tap, k in zip(taps, kernel.reshape(9, *kernel.shape[2:]), strict=True))


def im2col_gradient(x: Array, dy: Array, strides: int) -> Array:
    columns, errors = patches(x, strides), dy.reshape(-1, dy.shape[-1])
    product = lax.dot_general(
        columns.reshape(errors.shape[0], -1), errors, (((0,), (0,)), ((), ()))
    )
    return product.reshape(3, 3, x.shape[-1], dy.shape[-1])


def passes(x: Array, kernel: Array, dy: Array, strides: int) -> dict[str, tuple[dict, tuple]]:
    """The ways of each pass, XLA's first, and what they are given."""
    turned = lambda k: k[::-1, ::-1].swapaxes(2, 3)  # noqa: E731
    forward = {
        "direct": partial(direct, strides=strides),
        "im2col": partial(im2col, strides=strides),
        "shifted": partial(shifted, strides=strides),
    }
    of_input: dict[str, Way] = {
        "direct": lambda dy, k: jax.linear_transpose(lambda x: direct(x, k, strides), x)(dy)[0],
    }
    of_kernel: dict[str, Way] = {
        "direct": lambda x, dy: jax.linear_transpose(lambda k: direct(x, k, strides), kernel)(dy)[
            0
        ],
        "im2col": partial(im2col_gradient, strides=strides),
        "shifted": partial(kernel_gradient_by_matmul, kernel_shape=kernel.shape, strides=strides),
    }
    if strides == 1:
        of_input["im2col"] = lambda dy, k: im2col(dy, turned(k), 1)
        for tile in (2, 4):
            forward[f"F{tile}"] = partial(winograd.forward, tile=tile)
            of_input[f"F{tile}"] = partial(winograd.input_gradient, tile=tile)
            of_kernel[f"F{tile}"] = partial(winograd.kernel_gradient, tile=tile)
    return {
        "output": (forward, (x, kernel)),
        "d input": (of_input, (dy, kernel)),
        "d kernel": (of_kernel, (x, dy)),
    }


def measure(ways: dict[str, Way], args: tuple, seconds: float) -> dict[str, tuple[float, float]]:
    """Milliseconds, and the first way's time over this one's, medians."""
    compiled = {name: jax.jit(way).lower(*args).compile() for name, way in ways.items()}
    results = {name: np.asarray(run(*args)) for name, run in compiled.items()}
    first, *_ = results.values()
    for name, result in results.items():
        error = np.abs(result - first).max() / np.abs(first).max()
        assert error < 1e-4, f"{name} is off by {error:.1e}"
    times: dict[str, list[float]] = {name: [] for name in ways}
    start = time.perf_counter()
    while len(times["direct"]) < 7 or time.perf_counter() - start < seconds:
        for name, run in compiled.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(*args))
            times[name].append(time.perf_counter() - begin)
    ratio = {
        n: [d / t for d, t in zip(times["direct"], ts, strict=True)] for n, ts in times.items()
    }
    return {n: (1e3 * statistics.median(times[n]), statistics.median(ratio[n])) for n in ways}


def main(_: list[str]) -> None:
    if KEEP.value:
        assert keep_freed_memory(), "mallopt refused; needs glibc"
    columns = ("im2col", "shifted", "F2", "F4")
    print("| shape | pass | XLA, ms | " + " | ".join(columns) + " |\n|---|---|" + "---:|" * 5)
    for shape in SHAPES.value:
        batch, side, cin, cout, strides = (*map(int, shape.split("x")), *[0] * 2)[:5]
        cout, strides = cout or cin, strides or 1
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(batch, side, side, cin)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(3, 3, cin, cout)) / (9 * cin) ** 0.5, jnp.float32)
        dy = jnp.asarray(rng.normal(size=direct(x, kernel, strides).shape), jnp.float32)
        for name, (ways, args) in passes(x, kernel, dy, strides).items():
            found = measure(ways, args, SECONDS.value)
            cells = [f"{found[way][1]:.2f}" if way in found else "" for way in columns]
            print(
                f"| {shape} | {name} | {found['direct'][0]:.1f} | {' | '.join(cells)} |", flush=True
            )


if __name__ == "__main__":
    app.run(main)

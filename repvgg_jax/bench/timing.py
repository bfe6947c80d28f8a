"""Interleaved timings, compared as ratios, for noisy shared machines."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from repvgg_jax.ops.convolution import convolve

Times = dict[str, list[float]]


def time_interleaved(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Runs each function once per round, and returns its seconds in every round.

    Other load on the machine thus affects all functions alike. The first round is a warm-up and is
    not measured. The order is random, since the caches, memory and threads that a function leaves
    behind may change the time of the next.

    Example:
      >>> times = time_interleaved({"sin": lambda: jnp.sin(x), "exp": lambda: jnp.exp(x)}, rounds=5)
      >>> ratio(times, "sin", to="exp")

    Args:
      functions: functions without arguments; their times include `jax.block_until_ready`.
      rounds: number of measured rounds, at least 1.
      clock: function that returns seconds; `time.process_time` for processor time.
    """
    times: Times = {name: [] for name in functions}
    order = list(functions)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds + 1):
        shuffle(order)
        for name in order:
            start = clock()
            jax.block_until_ready(functions[name]())
            times[name].append(clock() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio(times: Times, name: str, to: str) -> float:
    """Returns the median over rounds of one function's time divided by another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Returns the first and the third quartile of at least two times."""
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, high


def peak_rate(dtype: Any, algorithm: str = "auto", seconds: float = 0.5) -> float:
    """Measures the operations per second of the fastest matrix product or 3x3 convolution.

    Both are measured, since a library's convolutions may be faster than XLA's matrix products.

    Args:
      dtype: compute type.
      algorithm: algorithm of the convolutions, as in `ops.convolution.convolve`.
      seconds: time for which each size is repeated.
    """
    return max(_matmul_rate(dtype, seconds), _convolution_rate(dtype, algorithm, seconds))


def _matmul_rate(dtype: Any, seconds: float) -> float:
    """Measures the operations per second of the fastest square matrix product.

    A multiply-add is two operations. The size doubles as long as that is faster. Each size is
    repeated for about `seconds`, and the fastest run counts.
    """
    product = jax.jit(jnp.matmul)

    def programs() -> Iterator[tuple[int, Callable[[], Any]]]:
        for size in (1024, 2048, 4096, 8192, 16384):
            a = _random((size, size), dtype)
            yield 2 * size**3, partial(product, a, a)

    return highest_rate(programs(), seconds)


def _convolution_rate(dtype: Any, algorithm: str, seconds: float) -> float:
    """Measures the operations per second of 3x3 convolutions, as `_matmul_rate` does of products.

    They have 256 channels and 28x28 pixels; the batch doubles as long as that is faster. With
    Winograd's algorithm, the multiply-adds of the direct convolution are counted.
    """
    convolution = jax.jit(partial(convolve, dtype=dtype, algorithm=algorithm))
    side, channels = 28, 256
    kernel = _random((3, 3, channels, channels), dtype)

    def programs() -> Iterator[tuple[int, Callable[[], Any]]]:
        for batch in (8, 16, 32, 64, 128, 256, 512):
            images = _random((batch, side, side, channels), dtype)
            yield 2 * batch * side**2 * kernel.size, partial(convolution, images, kernel)

    return highest_rate(programs(), seconds)


def _random(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns random elements; with constant ones, chips draw less power and may run faster."""
    return jax.random.normal(jax.random.key(0), shape, dtype)


def highest_rate(programs: Iterator[tuple[int, Callable[[], Any]]], seconds: float) -> float:
    """Returns the highest operations per second of (operations, program) pairs.

    The pairs are of increasing size. Stops after the first that is not at least 5% faster.
    """
    best = 0.0
    for operations, program in programs:
        times: list[float] = []
        start = time.perf_counter()
        jax.block_until_ready(program())
        while len(times) < 3 or time.perf_counter() - start < seconds:
            run_start = time.perf_counter()
            jax.block_until_ready(program())
            times.append(time.perf_counter() - run_start)
        rate = operations / min(times)
        if rate < 1.05 * best:
            return max(best, rate)
        best = rate
    return best

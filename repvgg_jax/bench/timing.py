"""Interleaved timings, compared as ratios, for noisy shared machines."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Times = dict[str, list[float]]


def time_interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
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
    """
    times: Times = {name: [] for name in functions}
    order = list(functions)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds + 1):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio(times: Times, name: str, to: str) -> float:
    """Returns the median over rounds of one function's time divided by another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def matmul_peak(dtype: Any, seconds: float = 1.0) -> float:
    """Measures the operations per second of the fastest square matrix product.

    A multiply-add is two operations. The size doubles as long as that is faster. Each size is
    repeated for about `seconds`, and its fastest run counts.
    """
    product = jax.jit(jnp.matmul)
    best = 0.0
    for size in (1024, 2048, 4096, 8192, 16384):
        # Random elements, since constant ones draw less power and a processor may then run faster.
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        times = []
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        while len(times) < 3 or time.perf_counter() - start < seconds:
            run_start = time.perf_counter()
            jax.block_until_ready(product(a, a))
            times.append(time.perf_counter() - run_start)
        rate = 2 * size**3 / min(times)
        if rate < 1.05 * best:
            return max(best, rate)
        best = rate
    return best

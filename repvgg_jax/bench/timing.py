"""Times that a shared, noisy machine does not distort: taken by turns, compared as ratios."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Times = dict[str, list[float]]


def time_interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of each function in every round, one after the other, after one round unmeasured.

    Each round has an order of its own, as a function may leave caches, memory and threads behind
    that slow or speed the next.

    Args:
      functions: of no arguments; what JAX arrays they return is waited for.
      rounds: from 1 on.
    """
    times: Times = {name: [] for name in functions}
    order, shuffle = list(functions), random.Random(0).shuffle
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            function = functions[name]
            start = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Times, name: str, to: str) -> float:
    """The median over rounds of one function's time by another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def matmul_peak(dtype: Any, seconds: float = 1.0) -> float:
    """Operations a second (two for each multiply-add) of the best square product, as measured.

    Sizes double while they gain; each is repeated for about `seconds`, and its fastest run counts.
    """
    best, size = 0.0, 1024
    while size <= 16384:
        # Not of ones, for which a processor may draw less power and run faster.
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product = jax.jit(jnp.matmul)
        times, start = [], time.perf_counter()
        jax.block_until_ready(product(a, a))
        while len(times) < 3 or time.perf_counter() - start < seconds:
            began = time.perf_counter()
            jax.block_until_ready(product(a, a))
            times.append(time.perf_counter() - began)
        rate = 2 * size**3 / min(times)
        if rate < 1.05 * best:
            return max(best, rate)
        best, size = rate, 2 * size
    return best

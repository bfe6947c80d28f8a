"""Groups of small programs, whose speed is compared with that of the first of their group."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.measuring import compile_all, time_together
from experiments.benchmarks.programs import Program, jax_program
from experiments.studies.comparison.nets import rounded
from experiments.studies.comparison.sizes import Rows
from repvgg_jax.bench.timing import ratio


@dataclass(frozen=True)
class Case:
    """A function of images and kernels, of the given shapes.

    Attributes:
      name: name in the table.
      function: function of images and a list of kernels.
      images: shape of the images, [batch, height, width, channels].
      kernels: shapes of the kernels, [height, width, inputs, outputs].
      macs: multiply-adds, as a direct convolution has them.
      about: more fields of its row.
    """

    name: str
    function: Callable[[jax.Array, list[jax.Array]], jax.Array]
    images: tuple[int, int, int, int]
    kernels: Sequence[tuple[int, int, int, int]]
    macs: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def compiled(self, dtype: str) -> Program:
        """Returns the program on random arrays."""
        kernels = [_normal(shape, dtype) * kernel_scale(shape) for shape in self.kernels]
        return jax_program(self.function, _normal(self.images, dtype), kernels)


def kernel_scale(shape: tuple[int, int, int, int]) -> float:
    """Returns the standard deviation that keeps the variance of outputs after a ReLU."""
    height, width, inputs, _ = shape
    return (2 / (height * width * inputs)) ** 0.5


def _normal(shape: Sequence[int], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape, jnp.dtype(dtype))


def measure_groups(
    groups: Sequence[Sequence[Case]], shape: str, dtype: str, rounds: int, rows: Rows
) -> None:
    """Measures the cases of each group interleaved, unless all of them have rows already.

    A row's `speed_of_first` is the time of the first case divided by its own, in the same rounds.
    """
    left = [
        group
        for group in groups
        if any(rows.missing(case=case.name, shape=shape) for case in group)
    ]
    cases = {case.name: case for group in left for case in group}
    makers = {name: partial(case.compiled, dtype) for name, case in cases.items()}
    programs, errors = compile_all(makers)
    for group in left:
        first, *_ = group
        runs = {case.name: programs[case.name].run for case in group if case.name in programs}
        times, failed = time_together(runs, rounds)
        for case in group:
            about = {"case": case.name, "shape": shape, **case.about}
            if case.name not in times:
                rows.add(**about, error=(errors | failed)[case.name])
                continue
            seconds = statistics.median(times[case.name])
            of_first = ratio(times, first.name, to=case.name) if first.name in times else None
            rows.add(
                **about,
                milliseconds=rounded(1e3 * seconds),
                fastest=rounded(1e3 * min(times[case.name])),
                runs=len(times[case.name]),
                macs=case.macs,
                operations_per_second=rounded(2 * case.macs / seconds),
                speed_of_first=None if of_first is None else rounded(of_first),
            )

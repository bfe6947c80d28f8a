"""The speed of convolutions with kernels of several sizes: RepVGG, Table 1 (section 3.1)."""

from collections.abc import Callable
from functools import partial
from typing import TextIO

import jax

from experiments.benchmarks.flags import shape_of
from experiments.studies.comparison.cases import Case, measure_groups
from experiments.studies.comparison.sizes import Sizes, open_rows
from repvgg_jax.ops import winograd
from repvgg_jax.ops.convolution import convolve, engine

KERNELS = "kernels"  # name of the part
WINOGRAD = {2: "3x3 as F(2x2, 3x3)", 4: "3x3 as F(4x4, 3x3)"}
# TFLOP/s on a GTX 1080Ti in float32: 2048 channels, 56x56 pixels, batch 32, cuDNN 7.5.
PUBLISHED = {"1x1": 9.96, "3x3": 38.10, "5x5": 10.57, "7x7": 9.38}


def measure(sizes: Sizes, file: TextIO) -> None:
    """Measures a convolution of each size, and this package's Winograd algorithms in float32.

    Winograd's algorithms are not measured in bfloat16, whose tiles they compute in float32.
    """
    batch, side, channels = shape_of(sizes.kernels, 3, "--kernels")
    images = batch, side, side, channels
    library = engine("auto", sizes.dtype)

    def case(name: str, size: int, function: Callable[..., jax.Array], library: str) -> Case:
        kernel = size, size, channels, channels
        macs = batch * side**2 * size**2 * channels**2
        return Case(name, function, images, [kernel], macs, {"library": library})

    direct = partial(_direct, dtype=sizes.dtype)
    cases = [case(f"{size}x{size}", size, direct, library) for size in (1, 3, 5, 7)]
    if sizes.dtype == "float32":
        for tile, name in WINOGRAD.items():
            cases.append(case(name, 3, partial(_winograd, tile=tile), "this package"))
    rows = open_rows(KERNELS, sizes, file)
    measure_groups([cases], sizes.kernels, sizes.dtype, sizes.rounds, rows)


def _direct(images: jax.Array, kernels: list[jax.Array], dtype: str) -> jax.Array:
    return convolve(images, *kernels, dtype=dtype)


def _winograd(images: jax.Array, kernels: list[jax.Array], tile: int) -> jax.Array:
    return winograd.forward(images, *kernels, tile=tile)

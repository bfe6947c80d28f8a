"""The experiments of ShuffleNetV2's four guidelines (arXiv 1807.11164, section 2, Tables 1 to 4).

Each stacks ten blocks at 56x56 pixels, all of about the same number of multiply-adds, in which one
property varies. Every convolution is followed by a ReLU, unless that is what varies. The paper does
not print where ReLUs are in the first three, nor the batch.
"""

import math
from functools import partial
from typing import NamedTuple, TextIO

import jax
from flax import linen as nn

from experiments.benchmarks.flags import shape_of
from experiments.studies.comparison.cases import Case, measure_groups
from experiments.studies.comparison.sizes import Sizes, open_rows
from repvgg_jax.ops.convolution import convolve

GUIDELINES = "guidelines"  # name of the part
BLOCKS = 10
BOTTLENECK = 64  # channels of the 3x3 convolution, and a quarter of those around it


class Variant(NamedTuple):
    """A variant of a guideline's experiment.

    Attributes:
      name: name in the table.
      published: batches per second on the paper's GPU, for the smallest nets in Tables 1 to 3 and
        64 channels in Table 4.
      kernels: shapes of the kernels of a block.
      groups: groups of its convolutions.
      parallel: whether they are branches, which are added, instead of one after the other.
      relu: whether a ReLU follows each.
      shortcut: whether the input of the block is added to its output.
    """

    name: str
    published: int
    kernels: tuple[tuple[int, int, int, int], ...]
    groups: int = 1
    parallel: bool = False
    relu: bool = True
    shortcut: bool = False


def _pointwise(inputs: int, outputs: int) -> tuple[int, int, int, int]:
    return 1, 1, inputs, outputs


def _there_and_back(inner: int, outer: int) -> tuple[tuple[int, int, int, int], ...]:
    return _pointwise(inner, outer), _pointwise(outer, inner)


def _same(width: int, count: int = 1) -> tuple[tuple[int, int, int, int], ...]:
    return (_pointwise(width, width),) * count


_WIDE = 4 * BOTTLENECK
_BOTTLENECK = (
    _pointwise(_WIDE, BOTTLENECK),
    (3, 3, BOTTLENECK, BOTTLENECK),
    _pointwise(BOTTLENECK, _WIDE),
)
VARIANTS = {
    "equal widths: inputs to outputs of 1x1 convolutions": [
        Variant("1:1 (128, 128)", 1480, _there_and_back(128, 128)),
        Variant("1:2 (90, 180)", 1296, _there_and_back(90, 180)),
        Variant("1:6 (52, 312)", 876, _there_and_back(52, 312)),
        Variant("1:12 (36, 432)", 748, _there_and_back(36, 432)),
    ],
    "cost of groups: groups of 1x1 convolutions": [
        Variant("1 group (128)", 2451, _same(128)),
        Variant("2 groups (180)", 1725, (_pointwise(90, 180),), groups=2),
        Variant("4 groups (256)", 1026, (_pointwise(64, 256),), groups=4),
        Variant("8 groups (360)", 634, (_pointwise(45, 360),), groups=8),
    ],
    "fragmentation: 1x1 convolutions of a block": [
        Variant("1 (128)", 2446, _same(128)),
        Variant("2 in series (90)", 1790, _same(90, 2)),
        Variant("4 in series (64)", 752, _same(64, 4)),
        Variant("2 in parallel (90)", 1537, _same(90, 2), parallel=True),
        Variant("4 in parallel (64)", 691, _same(64, 4), parallel=True),
    ],
    f"element-wise operations: bottlenecks ({_WIDE}, {BOTTLENECK}, {_WIDE})": [
        Variant("ReLU, shortcut", 2066, _BOTTLENECK, shortcut=True),
        Variant("ReLU", 2256, _BOTTLENECK),
        Variant("shortcut", 2121, _BOTTLENECK, relu=False, shortcut=True),
        Variant("neither", 2376, _BOTTLENECK, relu=False),
    ],
}


def measure(sizes: Sizes, file: TextIO) -> None:
    """Measures the variants of each guideline, interleaved."""
    batch, side = shape_of(sizes.layers, 2, "--layers")
    rows = open_rows(GUIDELINES, sizes, file)
    groups = [
        [_case(guideline, variant, batch, side, sizes.dtype) for variant in variants]
        for guideline, variants in VARIANTS.items()
    ]
    measure_groups(groups, sizes.layers, sizes.dtype, sizes.rounds, rows)


def _case(guideline: str, variant: Variant, batch: int, side: int, dtype: str) -> Case:
    inputs = variant.kernels[0][2] * variant.groups
    macs = BLOCKS * batch * side**2 * sum(map(math.prod, variant.kernels))
    function = partial(_stacked, variant=variant, dtype=dtype)
    about = {"guideline": guideline}
    return Case(
        f"{guideline.partition(':')[0]}, {variant.name}",
        function,
        (batch, side, side, inputs),
        variant.kernels * BLOCKS,
        macs,
        about,
    )


def _stacked(
    images: jax.Array, kernels: list[jax.Array], variant: Variant, dtype: str
) -> jax.Array:
    """Returns the output of the last block; each has its own kernels."""
    step = len(variant.kernels)
    for start in range(0, len(kernels), step):
        images = _block(images, kernels[start : start + step], variant, dtype)
    return images


def _block(images: jax.Array, kernels: list[jax.Array], variant: Variant, dtype: str) -> jax.Array:
    """Returns the output of a block, whose last ReLU follows its shortcut."""
    apply = partial(convolve, groups=variant.groups, dtype=dtype)
    if variant.parallel:
        return sum(apply(images, kernel, apply_relu=variant.relu) for kernel in kernels)
    x = images
    for kernel in kernels[:-1]:
        x = apply(x, kernel, apply_relu=variant.relu)
    x = apply(x, kernels[-1], apply_relu=variant.relu and not variant.shortcut)
    if variant.shortcut:
        x = x + images
        x = nn.relu(x) if variant.relu else x
    return x

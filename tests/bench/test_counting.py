"""The column "Wino MULs" of the RepVGG paper's tables 4 and 5 (arXiv 2101.03697), row by row."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import repvgg_jax as rj
from repvgg_jax.bench.counting import (
    count_macs,
    count_multiplications,
    count_winograd_multiplications,
)
from repvgg_jax.nets import abstract

# Billions of multiplications as printed.
REPVGG = {"a0": 0.7, "a1": 1.3, "b0": 1.6, "a2": 2.7, "b1g4": 3.9, "b1g2": 4.6, "b1": 5.9}
REPVGG |= {"b2g4": 6.0, "b2": 9.1, "b3g4": 8.4, "b3": 12.9}


class Chain:
    """The shapes of a chain of layers, and a function of them that is only traced."""

    def __init__(self):
        self.layers, self.side, self.channels = [], 224, 3

    def conv(self, size, features, strides=1, groups=1, aside=False):
        """Appends a convolution; `aside` makes it a shortcut, which leaves the chain's shape."""
        kernel = (size, size, self.channels // groups, features)
        x = (1, self.side, self.side, self.channels)
        self.layers.append((x, kernel, strides, groups))
        if not aside:
            self.side, self.channels = -(-self.side // strides), features
        return self

    def pool(self):
        self.side = -(-self.side // 2)
        return self

    def dense(self, inputs, features):
        self.layers.append(((1, 1, 1, inputs), (1, 1, inputs, features), 1, 1))

    def count(self, tile=None, grouped_from=1):
        """Counts multiplications; grouped layers count as direct on sides below `grouped_from`."""
        small = [entry for entry in self.layers if entry[3] > 1 and entry[0][1] < grouped_from]
        others = [entry for entry in self.layers if entry not in small]
        return self._count(others, tile) + self._count(small, None)

    def _count(self, layers, tile):
        def layer(x, kernel, strides, groups):
            return lax.conv_general_dilated(
                x,
                kernel,
                (strides, strides),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        def run(arrays):
            rest = (entry[2:] for entry in layers)
            return [layer(*pair, *r) for pair, r in zip(arrays, rest, strict=True)]

        arrays = [
            [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in entry[:2]] for entry in layers
        ]
        return count_multiplications(run, arrays, tile=tile)


def vgg16():
    net = Chain()
    for depth, features in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]:
        for _ in range(depth):
            net.conv(3, features)
        net.pool()
    net.dense(7 * 7 * 512, 4096)
    net.dense(4096, 4096)
    net.dense(4096, 1000)
    return net


def basic(depths):
    """ResNet-18 and -34."""
    net = Chain().conv(7, 64, 2).pool()
    for stage, depth in enumerate(depths):
        for block in range(depth):
            features, strides = 64 * 2**stage, 2 if stage and not block else 1
            if strides == 2:
                net.conv(1, features, 2, aside=True)
            net.conv(3, features, strides).conv(3, features)
    net.dense(512, 1000)
    return net


def bottleneck(depths, width=64, groups=1, stride_in_3x3=False):
    """ResNet (the original: stride in the first 1x1) and ResNeXt (stride in the 3x3)."""
    net = Chain().conv(7, 64, 2).pool()
    for stage, depth in enumerate(depths):
        for block in range(depth):
            inner, outer = width * 2**stage, 256 * 2**stage
            strides = 2 if stage and not block else 1
            if not block:
                net.conv(1, outer, strides, aside=True)
            first, second = (1, strides) if stride_in_3x3 else (strides, 1)
            net.conv(1, inner, first).conv(3, inner, second, groups).conv(1, outer)
    net.dense(2048, 1000)
    return net


def regnetx(depths, widths, group_width):
    net = Chain().conv(3, 32, 2)
    for depth, width in zip(depths, widths, strict=True):
        for block in range(depth):
            strides = 1 if block else 2
            if not block:
                net.conv(1, width, 2, aside=True)
            net.conv(1, width).conv(3, width, strides, width // group_width).conv(1, width)
    net.dense(widths[-1], 1000)
    return net


# Exact multiply-adds, by arithmetic over the published architectures, then the printed figure.
OTHERS = {
    "ResNet-18": (basic([2, 2, 2, 2]), 1814073344, 1.0),
    "ResNet-34": (basic([3, 4, 6, 3]), 3663761408, 1.8),
    "ResNet-50": (bottleneck([3, 4, 6, 3]), None, 2.8),
    "ResNet-101": (bottleneck([3, 4, 23, 3]), None, 5.5),
    "ResNet-152": (bottleneck([3, 8, 36, 3]), None, 8.1),
    "ResNeXt-50": (bottleneck([3, 4, 6, 3], 128, 32, True), 4230479872, 4.1),
    "ResNeXt-101": (bottleneck([3, 4, 23, 3], 128, 32, True), 7969996800, 7.9),
    "RegNetX-3.2GF": (regnetx([2, 6, 15, 2], [96, 192, 432, 1008], 48), 3176621952, 2.9),
    "RegNetX-12GF": (regnetx([2, 5, 11, 1], [224, 448, 896, 2240], 112), 12086678016, 10.9),
    "VGG-16": (vgg16(), 15470264320, 6.9),
}


@pytest.mark.medium
@pytest.mark.parametrize("name", REPVGG)
def test_rows_of_repvgg(name):
    net = rj.create(f"repvgg_{name}").clone(block="fused")
    shapes = abstract(net)
    assert round(count_winograd_multiplications(net, shapes) / 1e9, 1) == REPVGG[name]
    # F(2x2, 3x3) leaves 4/9 of the multiplications of a 3x3, F(4x4, 3x3) 1/4.
    macs, two, four = (
        count_macs(net, shapes),
        *(count_winograd_multiplications(net, shapes, tile=tile) for tile in (2, 4)),
    )
    assert (macs - four) * 5 * 4 == (macs - two) * 9 * 3


# Printed higher than 4/9 of every 3x3 of stride 1 gives: 7.7, 2.6 and 9.9. They come out where
# grouped layers of 14 x 14 and less count as direct, as if cuDNN had no Winograd for those. (Not so
# in RepVGG's own grouped nets, nor in ResNeXt-50, whose layers have the shapes of ResNeXt-101's: no
# rule by shape gives both.)
GROUPED_FROM_28 = {"ResNeXt-101", "RegNetX-3.2GF", "RegNetX-12GF"}


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_others(name):
    net, macs, printed = OTHERS[name]
    assert macs is None or net.count() == macs, "the table of layers is wrong"
    smallest = 28 if name in GROUPED_FROM_28 else 1
    assert round(net.count(tile=2, grouped_from=smallest) / 1e9, 1) == printed


@pytest.mark.parametrize("name", OTHERS)
def test_winograd_leaves_four_ninths_of_every_3x3_of_stride_1(name):
    """The rule itself, also where the paper's figures follow another one."""
    net, expected = OTHERS[name][0], 0
    for (_, side, _, _), kernel, strides, _ in net.layers:
        macs = (-(-side // strides)) ** 2 * math.prod(kernel)
        expected += Fraction(4, 9) * macs if kernel[:2] == (3, 3) and strides == 1 else macs
    assert net.count(tile=2) == expected

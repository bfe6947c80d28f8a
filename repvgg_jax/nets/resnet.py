"""Residual nets: ResNet, ResNeXt and wide ResNets.

ResNet: arXiv 1512.03385, section 3.3 and Table 1. ResNeXt: arXiv 1611.05431, Table 1. Wide ResNets:
arXiv 1605.07146, with the wide bottlenecks of Table 8.
"""

from collections.abc import Iterator
from functools import partial

from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.pool import max_pool
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_positive, check_stages, check_stem
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name, stage_infos, units_of
from repvgg_jax.runtime.compilation import barrier

WIDTHS = (64, 128, 256, 512)


class ResNet(Net):
    """A residual net of units relu(shortcut(x) + F(x)), where F is two 3x3 convolutions.

    The shortcut is x itself, or a 1x1 convolution if the stride or width changes. Each convolution
    is followed by a BatchNorm, and all but the last one of F by a ReLU. The 3x3 convolutions are
    blocks of class `block`, which fusion turns into single convolutions; the shortcuts stay.

    Attributes in addition to those of `Net`:
      depths: number of units in each stage.
      widths: channels of the 3x3 convolutions in each stage.
      strides: stride of each stage's first unit.
      stem: side and stride of the first convolution, and stride of the max pooling after it.
    """

    block: str = "plain"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = WIDTHS
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: tuple[int, int, int] = (7, 2, 2)

    @property
    def expansion(self) -> int:
        """Ratio of a unit's output channels to its width."""
        return 1

    @property
    def stem_width(self) -> int:
        """Outputs of the first convolution."""
        return self.widths[0]

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem, and of the units' parts: shortcuts and convolutions."""
        self.check_fields()
        size, strides, _ = self.stem
        plan = [BlockSpec("stem", 0, 0, 3, self.stem_width, strides, kernel_size=size)]
        inputs = self.stem_width
        stages = zip(self.depths, self.widths, self.strides, strict=True)
        for stage, (depth, width, stride) in enumerate(stages):
            outputs = width * self.expansion
            for index in range(depth):
                name, strides = block_name(stage, index), 1 if index else stride
                unit = BlockSpec(name, stage, index, inputs, outputs, strides)
                if strides != 1 or inputs != outputs:
                    plan.append(unit.part("shortcut", kernel_size=1))
                plan += self.residual(unit, width)
                inputs = outputs
        return tuple(plan)

    def residual(self, unit: BlockSpec, width: int) -> Iterator[BlockSpec]:
        """Yields the specs of the convolutions of F."""
        yield unit.part("conv0", features=width)
        yield unit.part("conv1", inputs=width, strides=1)

    def block_of(self, spec: BlockSpec) -> str:
        """Returns `block` for 3x3 convolutions, and "plain" for all others."""
        return self.block if spec.kernel_size == 3 or self.is_fused else "plain"

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage."""
        _, strides, pool = self.stem
        widths = [width * self.expansion for width in self.widths]
        return stage_infos(strides * pool, widths, self.strides)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_stages(depths=self.depths, widths=self.widths, strides=self.strides)
        check_stem(self.stem)
        super().check_fields()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        stem, *rest = self.plan()
        x = self.run_block_and_relu(stem, images, train)
        if self.stem[2] > 1:
            x = max_pool(x, 3, self.stem[2])
        for (stage, index), unit in units_of(rest):
            parts = {spec.role: spec for spec in unit}
            shortcut = parts.pop("shortcut", None)
            *first, last = parts.values()
            y = x
            for spec in first:
                y = self.squeeze_excite(self.run_block_and_relu(spec, y, train), spec)
            y = self.run_block(last, y, train)
            x = nn.relu((self.run_block(shortcut, x, train) if shortcut else x) + y)
            x = barrier(x)  # otherwise, XLA:CPU computes the sums of all units again in each
            if index == self.depths[stage] - 1:
                self.sow("intermediates", f"stage{stage}", x)
        return self.mean_and_head(x)


class BottleneckResNet(ResNet):
    """A residual net whose F is a 1x1, a 3x3 and a 1x1 convolution, with four times the channels.

    Attributes in addition to those of `ResNet`:
      strided: index of the convolution of F with the stride: 0 as in the paper ("v1"), or 1 as in
        PyTorch's nets ("v1.5"), which are slightly more accurate.
      groups: number of channel groups of the 3x3 convolutions.
      group_width: channels of each group in the first stage, for a width of 64.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    strided: int = 1
    groups: int = 1
    group_width: int = 64

    @property
    def expansion(self) -> int:
        """Ratio of a unit's output channels to its width."""
        return 4

    def residual(self, unit: BlockSpec, width: int) -> Iterator[BlockSpec]:
        """Yields the specs of the convolutions of F."""
        inner = width * self.group_width // 64 * self.groups
        strides = [unit.strides if index == self.strided else 1 for index in range(2)]
        yield unit.part("conv0", features=inner, kernel_size=1, strides=strides[0])
        yield unit.part(
            "conv1", inputs=inner, features=inner, groups=self.groups, strides=strides[1]
        )
        yield unit.part("conv2", inputs=inner, kernel_size=1, strides=1)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        if self.strided not in (0, 1):
            raise UsageError(f"strided={self.strided}: must be 0 (v1) or 1 (v1.5)")
        check_positive("groups", self.groups)
        check_positive("group_width", self.group_width)
        for width in self.widths:
            if width * self.group_width % 64:
                raise UsageError(
                    f"width {width} times group_width={self.group_width} must be a multiple of 64, "
                    "since group_width is for a width of 64; change widths or group_width"
                )


_BOTTLENECKS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_DEPTH_50, _DEPTH_101, _ = _BOTTLENECKS.values()

VARIANTS = {
    "resnet18": ResNet,
    "resnet34": partial(ResNet, depths=(3, 4, 6, 3)),
    "resnext50_32x4d": partial(BottleneckResNet, depths=_DEPTH_50, groups=32, group_width=4),
    "resnext101_32x4d": partial(BottleneckResNet, depths=_DEPTH_101, groups=32, group_width=4),
    "resnext101_32x8d": partial(BottleneckResNet, depths=_DEPTH_101, groups=32, group_width=8),
    "resnext101_64x4d": partial(BottleneckResNet, depths=_DEPTH_101, groups=64, group_width=4),
    "wide_resnet50_2": partial(BottleneckResNet, depths=_DEPTH_50, group_width=128),
    "wide_resnet101_2": partial(BottleneckResNet, depths=_DEPTH_101, group_width=128),
}
for _name, _depths in _BOTTLENECKS.items():
    VARIANTS[_name] = partial(BottleneckResNet, depths=_depths)
    VARIANTS[f"{_name}_v1"] = partial(BottleneckResNet, depths=_depths, strided=0)

"""ShuffleNetV1 (arXiv 1707.01083, Table 1) and ShuffleNetV2 (arXiv 1807.11164, Table 5)."""

from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.pool import max_pool
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_positive, check_stages, check_stem
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name, stage_infos, units_of
from repvgg_jax.runtime.compilation import barrier


def channel_shuffle(x: Array, groups: int) -> Array:
    """Returns `x` with its channels reordered: the first one of each group, then the second, ...

    The channels are [groups, channels per group], transposed. A convolution with groups thus reads
    from all groups of the previous one.
    """
    parts = x.reshape(*x.shape[:-1], groups, -1)
    return parts.swapaxes(-1, -2).reshape(x.shape)


class ShuffleNet(Net):
    """The stem and the stages of both versions, which differ in their units.

    The first unit of each stage has stride 2. Every convolution is a block of class `block`.

    Attributes in addition to those of `Net`:
      depths: number of units in each stage.
      widths: channels of each stage.
      width: outputs of the stem.
      stem: side and stride of the first convolution, and stride of the max pooling after it.
    """

    block: str = "plain"
    depths: tuple[int, ...] = (4, 8, 4)
    widths: tuple[int, ...] = (116, 232, 464)
    width: int = 24
    stem: tuple[int, int, int] = (3, 2, 2)

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem and of the units' convolutions."""
        self.check_fields()
        size, strides, _ = self.stem
        plan = [BlockSpec("stem", 0, 0, 3, self.width, strides, kernel_size=size)]
        inputs = self.width
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                name, strides = block_name(stage, index), 1 if index else 2
                plan += self.unit(BlockSpec(name, stage, index, inputs, width, strides))
                inputs = width
        return tuple(plan)

    def unit(self, spec: BlockSpec) -> Iterator[BlockSpec]:
        """Yields the specs of a unit's convolutions."""
        raise NotImplementedError

    def run_unit(self, unit: dict[str, BlockSpec], x: Array, train: bool) -> Array:
        """Applies the convolutions of a unit, given by role."""
        raise NotImplementedError

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage."""
        _, strides, pool = self.stem
        return stage_infos(strides * pool, self.widths, [2] * len(self.widths))

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_positive("width", self.width)
        check_stages(depths=self.depths, widths=self.widths)
        check_stem(self.stem)
        super().check_fields()

    def walk(self, images: Array, train: bool) -> Array:
        """Returns the output of the last unit."""
        plan = self.plan()
        x = self.run_block_and_relu(plan[0], images, train)
        if self.stem[2] > 1:
            x = max_pool(x, 3, self.stem[2])
        units = [spec for spec in plan if spec.role]
        for (stage, index), unit in units_of(units):
            x = barrier(self.run_unit({spec.role: spec for spec in unit}, x, train))
            if index == self.depths[stage] - 1:
                self.sow("intermediates", f"stage{stage}", x)
        return x


class ShuffleNetV1(ShuffleNet):
    """Units of a grouped 1x1, a depthwise 3x3 and a grouped 1x1 convolution, with BatchNorms.

    The first convolution of a unit reduces the channels to a quarter of the stage's width. It has a
    ReLU, and a channel shuffle after it. The unit returns relu(x + y) for its input x and the
    result y of its last convolution, or, if it has stride 2, relu of the concatenation of x, halved
    by mean pooling, and y. The net's first 1x1 convolution is not grouped, and its head has no
    bias.

    Attributes in addition to those of `ShuffleNet`:
      groups: number of channel groups of the 1x1 convolutions.
    """

    groups: int = 3
    widths: tuple[int, ...] = (240, 480, 960)

    def unit(self, spec: BlockSpec) -> Iterator[BlockSpec]:
        """Yields the specs of a unit's convolutions."""
        inner, groups = spec.features // 4, self.groups
        features = spec.features if spec.strides == 1 else spec.features - spec.inputs
        first = 1 if spec.stage == spec.index == 0 else groups
        yield spec.part("conv0", features=inner, groups=first, kernel_size=1, strides=1)
        yield spec.part("depthwise", inputs=inner, features=inner, groups=inner)
        last = {"inputs": inner, "features": features, "groups": groups}
        yield spec.part("conv1", **last, kernel_size=1, strides=1)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        check_positive("groups", self.groups)
        if self.width % self.groups or any(width % (4 * self.groups) for width in self.widths):
            raise UsageError(
                f"width={self.width} must be a multiple of groups={self.groups}, and "
                f"widths={self.widths} multiples of {4 * self.groups}, four times the groups"
            )
        before = (self.width, *self.widths[:-1])
        if any(width <= inputs for inputs, width in zip(before, self.widths, strict=True)):
            raise UsageError(
                f"widths={self.widths} must increase and be more than width={self.width}, since "
                "the first unit of a stage adds channels to its input"
            )

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        return self.mean_and_head(self.walk(images, train), use_bias=False)

    def run_unit(self, unit: dict[str, BlockSpec], x: Array, train: bool) -> Array:
        """Applies the convolutions of a unit, given by role."""
        y = self.run_block_and_relu(unit["conv0"], x, train)
        y = self.run_block(unit["depthwise"], channel_shuffle(y, self.groups), train)
        y = self.run_block(unit["conv1"], y, train)
        if unit["depthwise"].strides == 1:
            return nn.relu(x + y)
        halved = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return nn.relu(jnp.concatenate([halved, y], axis=-1))


class ShuffleNetV2(ShuffleNet):
    """Units on half of the channels: a 1x1, a depthwise 3x3 and a 1x1 convolution, with BatchNorms.

    Each 1x1 convolution has a ReLU. The other half of the channels is passed on, and a channel
    shuffle mixes both. The first unit of a stage has stride 2: all channels are inputs of its
    convolutions, and of a depthwise 3x3 and a 1x1 convolution in place of the half passed on.

    Attributes in addition to those of `ShuffleNet`:
      last: outputs of the 1x1 convolution before the head.
    """

    last: int = 1024

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem, of the units' convolutions, and of the last one."""
        plan, width = super().plan(), self.widths[-1]
        last = BlockSpec("last", len(self.depths), 0, width, self.last, kernel_size=1)
        return (*plan, last)

    def unit(self, spec: BlockSpec) -> Iterator[BlockSpec]:
        """Yields the specs of a unit's convolutions."""
        half = spec.features // 2
        inputs = spec.inputs if spec.strides > 1 else half
        if spec.strides > 1:
            yield spec.part("side_depthwise", features=inputs, groups=inputs)
            yield spec.part("side_conv", features=half, kernel_size=1, strides=1)
        yield spec.part("conv0", inputs=inputs, features=half, kernel_size=1, strides=1)
        yield spec.part("depthwise", inputs=half, features=half, groups=half)
        yield spec.part("conv1", inputs=half, features=half, kernel_size=1, strides=1)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        check_positive("last", self.last)
        if any(width % 2 for width in self.widths):
            raise UsageError(f"widths={self.widths} must be even, since units halve the channels")

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        x = self.run_block_and_relu(self.plan()[-1], self.walk(images, train), train)
        return self.mean_and_head(x)

    def run_unit(self, unit: dict[str, BlockSpec], x: Array, train: bool) -> Array:
        """Applies the convolutions of a unit, given by role."""
        if "side_conv" in unit:
            other = self.run_block(unit["side_depthwise"], x, train)
            other = self.run_block_and_relu(unit["side_conv"], other, train)
        else:
            other, x = jnp.split(x, 2, axis=-1)
        y = self.run_block_and_relu(unit["conv0"], x, train)
        y = self.run_block(unit["depthwise"], y, train)
        y = self.run_block_and_relu(unit["conv1"], y, train)
        return channel_shuffle(jnp.concatenate([other, y], axis=-1), 2)


_WIDTHS_V1 = {
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
VARIANTS: dict[str, partial[ShuffleNetV1]] = {
    f"shufflenetv1_100_g{groups}": partial(ShuffleNetV1, groups=groups, widths=widths)
    for groups, widths in _WIDTHS_V1.items()
}
VARIANTS |= {
    "shufflenetv1_050_g3": partial(ShuffleNetV1, width=12, widths=(120, 240, 480)),
    # The stem is that of Table 1. Scaled too, to width=48, as in the authors' code, the net has the
    # 524 million multiply-adds of Table 5 in place of 508.
    "shufflenetv1_200_g3": partial(ShuffleNetV1, widths=(480, 960, 1920)),
    "shufflenetv2_050": partial(ShuffleNetV2, widths=(48, 96, 192)),
    "shufflenetv2_100": partial(ShuffleNetV2),
    "shufflenetv2_150": partial(ShuffleNetV2, widths=(176, 352, 704)),
    "shufflenetv2_200": partial(ShuffleNetV2, widths=(244, 488, 976), last=2048),
}

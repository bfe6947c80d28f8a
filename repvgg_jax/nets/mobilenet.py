"""MobileNetV1 (arXiv 1704.04861, Table 1) and MobileNetV2 (arXiv 1801.04381, Table 2)."""

from functools import partial

from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.pool import max_pool
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_positive, check_probability, check_stages, check_stem
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name, stage_infos, units_of
from repvgg_jax.runtime.compilation import barrier


class MobileNetV1(Net):
    """A chain of depthwise 3x3 and 1x1 convolutions, each with a BatchNorm and a ReLU6.

    Every convolution is a block of class `block`. The paper's resolution multiplier is the size of
    the images.

    Attributes in addition to those of `Net`:
      multiplier: the paper's width multiplier, by which all channels are multiplied.
      depths: number of units in each stage.
      widths: channels of each stage, before the multiplier.
      strides: stride of each stage's first unit.
      stem: side and stride of the first convolution, and stride of a max pooling after it.
    """

    block: str = "plain"
    multiplier: float = 1.0
    depths: tuple[int, ...] = (1, 2, 2, 6, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    strides: tuple[int, ...] = (1, 2, 2, 2, 2)
    stem: tuple[int, int, int] = (3, 2, 1)

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem and of the units' convolutions."""
        self.check_fields()
        size, strides, _ = self.stem
        inputs = self.channels(32)
        plan = [BlockSpec("stem", 0, 0, 3, inputs, strides, kernel_size=size)]
        stages = zip(self.depths, self.widths, self.strides, strict=True)
        for stage, (depth, width, stride) in enumerate(stages):
            features = self.channels(width)
            for index in range(depth):
                name, strides = block_name(stage, index), 1 if index else stride
                plan += self.unit(BlockSpec(name, stage, index, inputs, features, strides))
                inputs = features
        return tuple(plan)

    def unit(self, spec: BlockSpec) -> list[BlockSpec]:
        """Returns the specs of a unit's convolutions."""
        return [
            spec.part("depthwise", features=spec.inputs, groups=spec.inputs),
            spec.part("pointwise", kernel_size=1, strides=1),
        ]

    def channels(self, width: int) -> int:
        """Returns the channels of a layer that has `width` of them without a multiplier.

        They are rounded to a multiple of 8, but not by more than a tenth down, as by V2's authors.
        """
        wanted = width * self.multiplier
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * wanted else rounded

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage."""
        _, strides, pool = self.stem
        return stage_infos(strides * pool, map(self.channels, self.widths), self.strides)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        if not isinstance(self.multiplier, int | float) or not self.multiplier > 0:
            raise UsageError(f"multiplier={self.multiplier!r}: must be positive")
        check_stages(depths=self.depths, widths=self.widths, strides=self.strides)
        check_stem(self.stem)
        super().check_fields()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        return self.mean_and_head(self.walk(images, train))

    def walk(self, images: Array, train: bool) -> Array:
        """Returns the output of the last convolution."""
        stem, *rest = self.plan()
        x = self.run_activated(stem, images, train)
        if self.stem[2] > 1:
            x = max_pool(x, 3, self.stem[2])
        for (stage, index), unit in units_of(rest):
            x = barrier(self.run_unit(unit, x, train))
            if stage < len(self.depths) and index == self.depths[stage] - 1:
                self.sow("intermediates", f"stage{stage}", x)
        return x

    def run_unit(self, unit: list[BlockSpec], x: Array, train: bool) -> Array:
        """Applies the convolutions of a unit."""
        for spec in unit:
            x = self.run_activated(spec, x, train)
        return x

    def run_activated(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Applies a convolution and its nonlinearity."""
        return nn.relu6(self.run_block(spec, x, train))


class MobileNetV2(MobileNetV1):
    """Inverted residuals: 1x1 expansion, depthwise 3x3 and 1x1 projection, with a shortcut.

    Each convolution has a BatchNorm, and each but the projection a ReLU6. The shortcut is there
    where stride and channels allow it.

    Attributes in addition to those of `MobileNetV1`:
      expansion: channels of the depthwise convolution for each input of a unit; 1 in the first.
      dropout: probability that an input of the head is dropped in training.
      drop_path: probability that an image skips a unit with a shortcut in training ("stochastic
        depth", arXiv 1603.09382): 0 for the first unit, growing linearly to this after the last.
    """

    depths: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    widths: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansion: int = 6
    dropout: float = 0.2
    drop_path: float = 0.0

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem, of the units' convolutions, and of the last one."""
        plan = super().plan()
        features = max(1280, self.channels(1280))
        last = BlockSpec("last", len(self.depths), 0, plan[-1].features, features, kernel_size=1)
        return (*plan, last)

    def unit(self, spec: BlockSpec) -> list[BlockSpec]:
        """Returns the specs of a unit's convolutions."""
        inner = spec.inputs * (self.expansion if spec.stage else 1)
        parts = [
            spec.part("expand", features=inner, kernel_size=1, strides=1),
            spec.part("depthwise", inputs=inner, features=inner, groups=inner),
            spec.part("project", inputs=inner, kernel_size=1, strides=1),
        ]
        return parts if spec.stage else parts[1:]

    def run_unit(self, unit: list[BlockSpec], x: Array, train: bool) -> Array:
        """Applies the convolutions of a unit, and adds its input where it has a shortcut."""
        *activated, last = unit
        if not activated:  # the last convolution of the net
            return self.run_activated(last, x, train)
        y = super().run_unit(activated, x, train)
        y = self.run_block(last, y, train)
        strided = any(spec.strides != 1 for spec in unit)
        if strided or x.shape[-1] != y.shape[-1]:
            return y
        before = sum(self.depths[: last.stage]) + last.index
        rate = self.drop_path * before / sum(self.depths)
        return x + nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(y)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_positive("expansion", self.expansion)
        check_probability("dropout", self.dropout)
        check_probability("drop_path", self.drop_path)
        super().check_fields()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        return self.mean_and_head(self.walk(images, train), train, self.dropout)


VARIANTS = {
    f"mobilenet{version}_{round(100 * multiplier):03}": partial(net, multiplier=multiplier)
    for version, net, multipliers in (
        ("v1", MobileNetV1, (1.0, 0.75, 0.5, 0.25)),
        ("v2", MobileNetV2, (1.4, 1.0, 0.75, 0.5)),
    )
    for multiplier in multipliers
}

"""Xception (arXiv 1610.02357, Figure 5), for images of 299 pixels a side."""

from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.pool import max_pool
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_probability, check_stages, check_stem
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name, stage_infos, units_of
from repvgg_jax.runtime.compilation import barrier


class Xception(Net):
    """A net of residual units shortcut(x) + F(x), where F is ReLUs and separable convolutions.

    A separable convolution is a depthwise 3x3 convolution, a 1x1 convolution and a BatchNorm. A
    stage starts with a unit of two of them and a max pooling, whose shortcut is a 1x1 convolution
    with a BatchNorm; its other units have three, and x itself as shortcut. In the paper's words,
    the first two stages and the first unit of the third are the entry flow, the other units of the
    third are the middle flow, and the rest is the exit flow. The plan has no depthwise
    convolutions, which no BatchNorm follows: fusion does not change them.

    Attributes in addition to those of `Net`:
      depths: number of units in each stage.
      widths: channels of each stage. The first unit of the last stage widens them in its second
        convolution, those of the other stages in their first.
      strides: stride of each stage.
      stem: side and stride of the first of two convolutions, and stride of a max pooling after
        them. The convolutions are not padded.
      last: outputs of the separable convolutions after the last unit.
      dropout: probability that an input of the head is dropped in training.
    """

    block: str = "plain"
    depths: tuple[int, ...] = (1, 1, 9, 1)
    widths: tuple[int, ...] = (128, 256, 728, 1024)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    stem: tuple[int, int, int] = (3, 2, 1)
    last: tuple[int, ...] = (1536, 2048)
    dropout: float = 0.5

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the first convolutions, shortcuts and 1x1 convolutions."""
        self.check_fields()
        size, strides, _ = self.stem
        plan = [
            BlockSpec("stem0", 0, 0, 3, 32, strides, kernel_size=size, padding="VALID"),
            BlockSpec("stem1", 0, 0, 32, 64, padding="VALID"),
        ]
        inputs = plan[-1].features
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                name = block_name(stage, index)
                plan += self._unit(BlockSpec(name, stage, index, inputs, width, kernel_size=1))
                inputs = width
        for index, width in enumerate(self.last):
            name = f"last{index}"
            plan.append(BlockSpec(name, len(self.depths), index, inputs, width, kernel_size=1))
            inputs = width
        return tuple(plan)

    def _unit(self, unit: BlockSpec) -> list[BlockSpec]:
        """Returns the specs of a unit's shortcut, if it is not x itself, and 1x1 convolutions."""
        if unit.index:
            return [unit.part(f"conv{index}") for index in range(3)]
        inner = unit.inputs if unit.stage == len(self.depths) - 1 else unit.features
        return [
            unit.part("shortcut", strides=self.strides[unit.stage]),
            unit.part("conv0", features=inner),
            unit.part("conv1", inputs=inner),
        ]

    def block_of(self, spec: BlockSpec) -> str:
        """Returns "plain": no other block can be a depthwise convolution without a BatchNorm."""
        return "fused" if self.is_fused else "plain"

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage after a ReLU, the last with `last`."""
        _, strides, pool = self.stem
        return stage_infos(strides * pool, (*self.widths[:-1], self.last[-1]), self.strides)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_stages(depths=self.depths, widths=self.widths, strides=self.strides)
        check_stages(last=self.last)
        check_stem(self.stem)
        check_probability("dropout", self.dropout)
        if self.frozen:
            raise UsageError(f"frozen={self.frozen}: an Xception cannot be frozen in part")
        super().check_fields()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        stem0, stem1, *rest = self.plan()
        x = self.run_block_and_relu(stem0, images, train)
        x = self.run_block_and_relu(stem1, x, train)
        if self.stem[2] > 1:
            x = max_pool(x, 3, self.stem[2])
        stages = len(self.depths)
        units = [spec for spec in rest if spec.stage < stages]
        for (stage, index), unit in units_of(units):
            x = barrier(self._run_unit(unit, x, train))
            if index == self.depths[stage] - 1 and stage < stages - 1:
                self.sow("intermediates", f"stage{stage}", nn.relu(x))
        for spec in rest[len(units) :]:
            x = nn.relu(self._separable(spec, x, train))
        self.sow("intermediates", f"stage{stages - 1}", x)
        return self.mean_and_head(x, train, self.dropout)

    def _run_unit(self, specs: list[BlockSpec], x: Array, train: bool) -> Array:
        """Returns the output of a unit."""
        shortcut = specs.pop(0) if specs[0].role == "shortcut" else None
        y = x
        for spec in specs:
            y = self._separable(spec, nn.relu(y), train)
        if shortcut is None:
            return x + y
        if shortcut.strides > 1:
            y = max_pool(y, 3, shortcut.strides)
        return self.run_block(shortcut, x, train) + y

    def _separable(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Applies a depthwise 3x3 convolution and the 1x1 convolution `spec`."""
        channels = x.shape[-1]
        x = self.conv(x, channels, 3, f"{spec.name}_depthwise", groups=channels)
        return self.run_block(spec, x, train)


VARIANTS = {"xception": Xception}

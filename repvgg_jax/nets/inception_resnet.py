"""Inception-ResNet-v2 (arXiv 1602.07261, Figures 15 to 19), as in its authors' published code.

The code has another stem than the figures, that of Inception-ResNet-v1 (Figure 14) followed by an
inception module, and other widths. Images have 299 pixels a side; the published weights are for
images that are normalized by a mean and a deviation of 0.5.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.base import KernelSize
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.pool import max_pool
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_probability, check_stages
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name, units_of
from repvgg_jax.runtime.compilation import barrier


class Layer(NamedTuple):
    """Outputs, kernel size and stride of a convolution; those of stride 2 are not padded."""

    features: int
    size: KernelSize = 1
    strides: int = 1


Branch = tuple[Layer, ...]


class Stage(NamedTuple):
    """The convolutions of a stage: its first module, and the branches of its residual units.

    Attributes:
      entry: branches of the first module. The pooled input is one more: a mean of the same size,
        followed by the 1x1 convolution `pooled`, or a max pooling of stride 2 if that is None.
      unit: branches of the function F of the residual units.
      scale: factor of F in a residual unit.
    """

    entry: tuple[Branch, ...]
    pooled: Layer | None
    unit: tuple[Branch, ...]
    scale: float


STAGES = (
    Stage(
        entry=(
            (Layer(96),),
            (Layer(48), Layer(64, 5)),
            (Layer(64), Layer(96, 3), Layer(96, 3)),
        ),
        pooled=Layer(64),
        unit=(
            (Layer(32),),
            (Layer(32), Layer(32, 3)),
            (Layer(32), Layer(48, 3), Layer(64, 3)),
        ),
        scale=0.17,
    ),
    Stage(
        entry=(
            (Layer(384, 3, 2),),
            (Layer(256), Layer(256, 3), Layer(384, 3, 2)),
        ),
        pooled=None,
        unit=(
            (Layer(192),),
            (Layer(128), Layer(160, (1, 7)), Layer(192, (7, 1))),
        ),
        scale=0.1,
    ),
    Stage(
        entry=(
            (Layer(256), Layer(384, 3, 2)),
            (Layer(256), Layer(288, 3, 2)),
            (Layer(256), Layer(288, 3), Layer(320, 3, 2)),
        ),
        pooled=None,
        unit=(
            (Layer(192),),
            (Layer(192), Layer(224, (1, 3)), Layer(256, (3, 1))),
        ),
        scale=0.2,
    ),
)
POOLED = "pooled"  # role of the 1x1 convolution of a pooled input
UP = "up"  # role of the last convolution of F


class InceptionResNetV2(Net):
    """A net of residual units relu(x + scale F(x)), where F has parallel branches.

    F concatenates its branches and restores the channels of x by a 1x1 convolution with a bias and
    without a BatchNorm. Each other convolution has a BatchNorm and a ReLU. A stage starts with a
    module of the same kind without a shortcut. The last unit has scale 1 and no ReLU. Padded 3x3
    convolutions are blocks of class `block`.

    Attributes in addition to those of `Net`:
      depths: number of residual units in each of the three stages.
      dropout: probability that an input of the head is dropped in training.
    """

    block: str = "plain"
    bn_epsilon: float = 1e-3
    depths: tuple[int, ...] = (10, 20, 10)
    dropout: float = 0.2

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem, of the modules' and units' convolutions, and the last."""
        self.check_fields()
        plan = [
            BlockSpec("stem0", 0, 0, 3, 32, 2, padding="VALID"),
            BlockSpec("stem1", 0, 0, 32, 32, padding="VALID"),
            BlockSpec("stem2", 0, 0, 32, 64),
            BlockSpec("stem3", 0, 0, 64, 80, kernel_size=1),
            BlockSpec("stem4", 0, 0, 80, 192, padding="VALID"),
        ]
        inputs = plan[-1].features
        for stage, (depth, kind) in enumerate(zip(self.depths, STAGES, strict=True)):
            module = BlockSpec(block_name(stage, 0), stage, 0, inputs, 0)
            plan += _branches(module, kind.entry)
            if kind.pooled:
                plan.append(module.part(POOLED, features=kind.pooled.features, kernel_size=1))
            inputs = _outputs(kind.entry) + (kind.pooled.features if kind.pooled else inputs)
            for index in range(1, depth + 1):
                unit = BlockSpec(block_name(stage, index), stage, index, inputs, inputs)
                plan += _branches(unit, kind.unit)
                plan.append(unit.part(UP, inputs=_outputs(kind.unit), kernel_size=1))
        last = BlockSpec("last", len(STAGES), 0, inputs, 1536, kernel_size=1)
        return (*plan, last)

    def block_of(self, spec: BlockSpec) -> str:
        """Returns `block` for padded 3x3 convolutions, "conv" for the last of F, else "plain"."""
        if self.is_fused:
            return "fused"
        if spec.role == UP:
            return "conv"
        padded = spec.padding == "symmetric"
        return self.block if spec.kernel_size == 3 and padded else "plain"

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage, the last one after `last`."""
        plan = self.plan()
        first, second, _ = {spec.stage: spec.features for spec in plan if spec.role == UP}.values()
        return (
            FeatureInfo("stage0", first, 8),
            FeatureInfo("stage1", second, 16),
            FeatureInfo("stage2", plan[-1].features, 32),
        )

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_stages(depths=self.depths)
        if len(self.depths) != len(STAGES):
            raise UsageError(f"depths={self.depths}: must have three entries")
        check_probability("dropout", self.dropout)
        super().check_fields()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        *plan, last = self.plan()
        stem, rest = plan[:5], plan[5:]
        x = images
        for index, spec in enumerate(stem):
            x = self.run_block_and_relu(spec, x, train)
            if index in (2, 4):
                x = max_pool(x, 3, 2, "VALID")
        for (stage, index), parts in units_of(rest):
            if index == 0:
                x = self._mixed(parts, x, train)
            else:
                y = self.run_block(parts[-1], self._concatenated(parts[:-1], x, train), train)
                is_last = stage == len(STAGES) - 1 and index == self.depths[stage]
                x = x + y if is_last else nn.relu(x + STAGES[stage].scale * y)
            x = barrier(x)
            if index == self.depths[stage] and stage < len(STAGES) - 1:
                self.sow("intermediates", f"stage{stage}", x)
        x = self.run_block_and_relu(last, x, train)
        self.sow("intermediates", "stage2", x)
        return self.mean_and_head(x, train, self.dropout)

    def _mixed(self, specs: list[BlockSpec], x: Array, train: bool) -> Array:
        """Returns the output of a stage's first module."""
        if specs[-1].role != POOLED:
            pooled = max_pool(x, 3, 2, "VALID")
            return jnp.concatenate([self._concatenated(specs, x, train), pooled], axis=-1)
        # Means without the zeros of the padding.
        pooled = nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)), count_include_pad=False)
        pooled = self.run_block_and_relu(specs[-1], pooled, train)
        return jnp.concatenate([self._concatenated(specs[:-1], x, train), pooled], axis=-1)

    def _concatenated(self, specs: list[BlockSpec], x: Array, train: bool) -> Array:
        """Returns the concatenated outputs of the branches of a module or unit."""
        outputs = []
        for _, branch in groupby(specs, key=lambda spec: spec.role.split("_")[0]):
            y = x
            for spec in branch:
                y = self.run_block_and_relu(spec, y, train)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


def _branches(unit: BlockSpec, branches: tuple[Branch, ...]) -> Iterator[BlockSpec]:
    """Yields the specs of the branches of a module or unit, with the roles `branch0_conv0`, ..."""
    for number, branch in enumerate(branches):
        inputs = unit.inputs
        for index, (features, size, strides) in enumerate(branch):
            yield unit.part(
                f"branch{number}_conv{index}",
                inputs=inputs,
                features=features,
                strides=strides,
                kernel_size=size,
                padding="symmetric" if strides == 1 else "VALID",
            )
            inputs = features


def _outputs(branches: tuple[Branch, ...]) -> int:
    """Returns the channels of the concatenated branches."""
    return sum(branch[-1].features for branch in branches)


VARIANTS = {"inception_resnet_v2": InceptionResNetV2}

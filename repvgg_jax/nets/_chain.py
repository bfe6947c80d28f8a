"""The base class of nets that consist of a chain of blocks and a dense head."""

from collections.abc import Iterator
from typing import Any

from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_stages
from repvgg_jax.nets._initializers import INITIALIZERS, redraw
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name, stage_infos
from repvgg_jax.runtime.compilation import barrier

# Blocks whose initializer can be chosen; the others use the initialization of their papers.
INITIALIZABLE = ("repvgg", "plain", "fused")


class Chain(Net):
    """A net of stages of blocks, each followed by a ReLU, with mean pooling and a dense head.

    Attributes in addition to those of `Net`:
      depths: number of blocks in each stage; the stem is the first stage.
      widths: channels of each stage.
      strides: stride of each stage's first block.
      kernel_size: side of the kernels, except those of 1x1 branches, layers and shortcuts.
      initializer: initializer of blocks `repvgg` and `plain`, one of `INITIALIZERS`. It is applied
        by `nets.init`, not by Flax's `init`, and does not affect squeeze-and-excite and heads.
    """

    depths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    kernel_size: int = 3
    initializer: str | None = None

    def stage_strides(self) -> tuple[int, ...]:
        """Returns the stride of each stage."""
        return tuple(self.strides)

    def single_blocks(self) -> Iterator[BlockSpec]:
        """Yields the specs of single, ungrouped blocks, from which subclasses make their plans.

        Raises:
          UsageError: if a field is invalid; the message names the field.
        """
        self.check_fields()
        inputs = 3
        stages = zip(self.depths, self.widths, self.stage_strides(), strict=True)
        for stage, (depth, width, stride) in enumerate(stages):
            for index in range(depth):
                name, strides = block_name(stage, index), stride if index == 0 else 1
                yield BlockSpec(
                    name, stage, index, inputs, width, strides, kernel_size=self.kernel_size
                )
                inputs = width

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the last feature map of each stage."""
        return stage_infos(1, self.widths, self.stage_strides())

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        return self.mean_and_head(self.walk(images, train))

    def walk(self, x: Array, train: bool) -> Array:
        """Returns the output of the last block, and sows the output of each stage as `stage<i>`."""
        plan = self.plan()
        last = {spec.stage: spec for spec in plan}
        for spec in plan:
            x = self.run_activated(spec, x, train)
            if train or not self.is_fused:  # the fused form does not need the barrier
                x = barrier(x)
            if last[spec.stage] is spec:
                x = self.end_stage(x)
                self.sow("intermediates", f"stage{spec.stage}", x)
            self.after_block(x, spec, train)
        return x

    def run_activated(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Applies a block, its squeeze-and-excite layer if it has one, and the ReLU."""
        if spec.se_hidden:
            return nn.relu(self.squeeze_excite(self.run_block(spec, x, train), spec))
        return self.run_block_and_relu(spec, x, train)

    def end_stage(self, x: Array) -> Array:
        """Returns the output of a stage, given that of its last block; the same by default."""
        return x

    def after_block(self, x: Array, spec: BlockSpec, train: bool) -> None:
        """Applies train-only layers to the output `x` of a block; does nothing by default."""

    def reinitialized(self, variables: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns variables drawn by `initializer`; unchanged if it is None or the net is fused."""
        if self.initializer is None or self.is_fused:
            return variables
        params = redraw(variables["params"], self.plan(), self.initializer, key)
        return variables | {"params": params}

    def check(self) -> None:
        """Raises UsageError if the net cannot be built; the message names the invalid field."""
        super().check()
        if self.initializer is None:
            return
        if self.initializer not in INITIALIZERS:
            known = ", ".join(INITIALIZERS)
            raise UsageError(f"initializer={self.initializer!r}: choose from {known}")
        if self.block not in INITIALIZABLE:
            raise UsageError(
                f"initializer={self.initializer!r}: block {self.block} has its own initialization; "
                "leave initializer unset, or set block to repvgg or plain"
            )

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid; `plan` calls this first."""
        check_stages(depths=self.depths, widths=self.widths, strides=self.strides)
        super().check_fields()

"""RepVGG-B0 with ResNet's shortcuts: "Residual Reorg" (arXiv 2101.03697, section 4.2)."""

from functools import partial

from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets._spec import BlockSpec, block_name, units_of
from repvgg_jax.nets.repvgg import B_DEPTHS, widths
from repvgg_jax.runtime.compilation import barrier


class ResidualReorg(Chain):
    """A net whose first and last stage have single blocks and all others have residual pairs.

    A pair is relu(shortcut(x) + conv1(relu(conv0(x)))), where the shortcut is x itself, or a 1x1
    block if the stride or width changes. Fusion keeps the shortcuts, so the fused form is a
    residual net. The default block is a convolution with a BatchNorm.

    Attributes in addition to those of `Chain`:
      depths: number of blocks in each stage, shortcuts excepted; even, except in the first and the
        last stage.
    """

    block: str = "plain"

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs; a pair has `conv0`, `shortcut` (if not the identity) and `conv1`."""
        plan: list[BlockSpec] = []
        for spec in self.single_blocks():
            if spec.stage in (0, len(self.depths) - 1):
                plan.append(spec)
                continue
            if spec.index % 2:  # the second block of a pair
                continue
            pair = spec.index // 2
            spec = spec._replace(name=block_name(spec.stage, pair), index=pair)
            plan.append(spec.part("conv0"))
            if spec.strides != 1 or spec.inputs != spec.features:
                plan.append(spec.part("shortcut", kernel_size=1))
            plan.append(spec.part("conv1", inputs=spec.features, strides=1))
        return tuple(plan)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        if len(self.depths) < 3:
            raise UsageError(f"depths {self.depths}: must have at least three stages")
        if any(depth % 2 for depth in self.depths[1:-1]):
            raise UsageError(
                f"depths {self.depths}: must be even except in the first and last stage, since "
                "blocks come in pairs"
            )

    def walk(self, x: Array, train: bool) -> Array:
        """Returns the output of the last block, and sows the output of each stage as `stage<i>`."""
        plan = self.plan()
        last = {spec.stage: spec.index for spec in plan}
        for (stage, index), unit in units_of(plan):
            specs = {spec.role: spec for spec in unit}
            if "" in specs:
                x = self.run_block_and_relu(specs[""], x, train)
            else:
                y = self.run_block_and_relu(specs["conv0"], x, train)
                y = self.run_block(specs["conv1"], y, train)
                shortcut = specs.get("shortcut")
                x = nn.relu((self.run_block(shortcut, x, train) if shortcut else x) + y)
            x = barrier(x)  # the fused form needs the barrier too, since it keeps the shortcuts
            if index == last[stage]:
                self.sow("intermediates", f"stage{stage}", x)
        return x


VARIANTS = {
    "residual_reorg_b0": partial(ResidualReorg, depths=B_DEPTHS, widths=widths(1, 2.5)),
}

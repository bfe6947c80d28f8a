"""RepVGG-B0's layers with ResNet's shortcuts: "Residual Reorg" (arXiv 2101.03697, section 4.2)."""

from functools import partial
from itertools import groupby

from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.nets._base import BlockSpec
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets.repvgg import B_DEPTHS, widths
from repvgg_jax.ops.convolution import relu
from repvgg_jax.runtime.compilation import barrier


class ResidualReorg(Chain):
    """A first and a last stage of single blocks, and stages of residual pairs between them.

    A pair is relu(shortcut(x) + conv1(relu(conv0(x)))); its shortcut is x itself, or a 1x1 block
    where stride or width change. The shortcuts stay when the net is fused: it deploys as a residual
    net, not as a plain one. Its blocks are one convolution with a BatchNorm unless chosen.

    Attributes, besides those of every chain:
      depths: number of pairs in each stage, or of single blocks in the first and the last.
    """

    block: str = "plain"

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the layers; a block of a middle stage has conv0, shortcut (if needed), conv1."""
        plan: list[BlockSpec] = []
        for spec in self.single_blocks():
            if spec.stage in (0, len(self.depths) - 1):
                plan.append(spec)
                continue
            plan.append(spec.part("conv0"))
            if spec.strides != 1 or spec.inputs != spec.features:
                plan.append(spec.part("shortcut", kernel_size=1))
            plan.append(spec.part("conv1", inputs=spec.features, strides=1))
        return tuple(plan)

    def check_fields(self) -> None:
        """Raises UsageError for values that no net of this class can have."""
        super().check_fields()
        if len(self.depths) < 3:
            raise UsageError(f"depths {self.depths}: must have at least three stages")

    def walk(self, x: Array, train: bool) -> Array:
        """Returns the map after the last block; each stage's last map is sown as `stage<i>`."""
        plan = self.plan()
        last = {spec.stage: spec.index for spec in plan}
        for (stage, index), unit in groupby(plan, key=lambda spec: (spec.stage, spec.index)):
            specs = {spec.role: spec for spec in unit}
            if "" in specs:
                x = self.run_block_and_relu(specs[""], x, train)
            else:
                y = self.run_block_and_relu(specs["conv0"], x, train)
                y = self.run_block(specs["conv1"], y, train)
                shortcut = specs.get("shortcut")
                x = relu((self.run_block(shortcut, x, train) if shortcut else x) + y)
            x = barrier(x)  # in the deploy form too, as the shortcuts stay
            if index == last[stage]:
                self.sow("intermediates", f"stage{stage}", x)
        return x


VARIANTS = {
    # A stage of 4, 6 or 16 layers has 2, 3 or 8 pairs.
    "residual_reorg_b0": partial(
        ResidualReorg,
        depths=tuple(depth // 2 if depth > 1 else 1 for depth in B_DEPTHS),
        widths=widths(1, 2.5),
    )
}

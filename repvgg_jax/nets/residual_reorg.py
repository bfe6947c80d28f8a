"""RepVGG-B0's layers with ResNet's shortcuts: "Residual Reorg" (arXiv 2101.03697, section 4.2)."""

from __future__ import annotations

from functools import partial
from itertools import groupby

from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.nets._base import BlockSpec, block_name
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets.repvgg import B_DEPTHS, widths
from repvgg_jax.ops.convolution import relu
from repvgg_jax.runtime.compilation import barrier


class ResidualReorg(Chain):
    """The first and the last stage are chains of single blocks, those between of pairs.

    A pair is relu(shortcut(x) + conv1(relu(conv0(x)))); its shortcut is x itself, or a 1x1 block
    where stride or width change. The shortcuts stay when the net is fused: it deploys as a residual
    net, not as a plain one. Its blocks are one convolution with a BatchNorm unless chosen.

    Attributes, besides those of every chain:
      depths: number of pairs in each stage, or of single blocks in the first and the last.
      kernel_size: side of the kernels, except those of shortcuts.
    """

    block: str = "plain"
    kernel_size: int = 3

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns single blocks, and `stage1_block0_conv0`, `..._shortcut` if any, `..._conv1`."""
        self.check_fields()
        if len(self.depths) < 3:
            raise UsageError(
                f"depths {self.depths}: must have a first stage, a last one, and some between"
            )
        plan: list[BlockSpec] = []
        inputs = 3
        last = len(self.depths) - 1
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                single = BlockSpec(
                    block_name(stage, index),
                    stage,
                    index,
                    inputs,
                    features=width,
                    strides=self.strides[stage] if index == 0 else 1,
                    kernel_size=self.kernel_size,
                )
                roles: dict[str, BlockSpec] = {"": single}
                if stage not in (0, last):
                    roles = {"conv0": single}
                    if single.strides != 1 or inputs != width:
                        roles["shortcut"] = single._replace(kernel_size=1)
                    roles["conv1"] = single._replace(inputs=width, strides=1)
                plan += [
                    spec._replace(name=block_name(stage, index, role), role=role)
                    for role, spec in roles.items()
                ]
                inputs = width
        return tuple(plan)

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

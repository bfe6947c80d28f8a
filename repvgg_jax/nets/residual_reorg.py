"""RepVGG-B0's layers with ResNet's shortcuts: "Residual Reorg" (arXiv 2101.03697, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.errors import UsageError
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets.repvgg import B_DEPTHS, widths
from repvgg_jax.ops.convolution import relu
from repvgg_jax.runtime.compilation import barrier


class ResidualReorg(Chain):
    """The first and the last stage are chains of single blocks, those between of pairs.

    A pair is relu(shortcut(x) + conv1(relu(conv0(x)))); its shortcut is x itself, or a 1x1 block
    where stride or width change. The shortcuts stay when it is fused: it deploys as a residual net,
    not as a plain one, and its blocks are the default's single convolution with a BatchNorm.

    Attributes, beside those of every chain:
      depths: of pairs, and of single blocks in the first and last stage.
    """

    kernel_size: int = 3
    block: Callable[..., nn.Module] = BLOCKS["plain"].block

    def plan(self) -> dict[str, dict[str, Any]]:
        """`stage1_block0_conv0`, `..._conv1` and, where there is one, `..._shortcut`."""
        self.check_stages()
        if len(self.depths) < 3:
            raise UsageError(f"depths {self.depths}: a first, a last and some stage between")
        plan: dict[str, dict[str, Any]] = {}
        reads, last = 3, len(self.depths) - 1
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                name, stride = f"stage{stage}_block{index}", self.strides[stage] if not index else 1
                spec = dict(features=width, strides=stride, groups=1, dilation=1, dtype=self.dtype)
                spec["kernel_size"] = self.kernel_size
                if stage in (0, last):
                    plan[name] = spec
                else:
                    plan[f"{name}_conv0"] = spec
                    if stride != 1 or reads != width:
                        plan[f"{name}_shortcut"] = spec | {"kernel_size": 1}
                    plan[f"{name}_conv1"] = spec | {"strides": 1}
                reads = width
        return plan

    def walk(self, x: Array, train: bool) -> Array:
        """The map after the last block; each stage's last is sown as an intermediate."""
        blocks = self.blocks()
        names = list(dict.fromkeys("_".join(name.split("_")[:2]) for name in blocks))
        ends = {name.split("_")[0]: name for name in names}

        def run(name: str, y: Array) -> Array:
            return self.run_block(blocks[name], name, y, train)

        def rectified(name: str, y: Array) -> Array:
            return self.run_rectified(blocks[name], name, y, train)

        for name in names:
            if name in blocks:
                x = rectified(name, x)
            else:
                y = run(f"{name}_conv1", rectified(f"{name}_conv0", x))
                shortcut = f"{name}_shortcut"
                x = relu((run(shortcut, x) if shortcut in blocks else x) + y)
            x = barrier(x)  # deployed too, as the shortcuts stay
            if ends[stage := name.split("_")[0]] == name:
                self.sow("intermediates", stage, x)
        return x


VARIANTS = {
    # A stage of 4, 6 or 16 layers has 2, 3 or 8 pairs.
    "residual_reorg_b0": partial(
        ResidualReorg,
        depths=tuple(depth // 2 if depth > 1 else 1 for depth in B_DEPTHS),
        widths=widths(1, 2.5),
    )
}

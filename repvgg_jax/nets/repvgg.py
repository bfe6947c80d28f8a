"""The plain chain that hosts every block, and RepVGG's variants (arXiv 2101.03697, Table 2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks import RepVGGBlock
from repvgg_jax.errors import UsageError
from repvgg_jax.layers import Dtype, SqueezeExcite, accumulation_dtype, dense


class RepVGG(nn.Module):
    """Stages of blocks with a ReLU after each, the mean over space, one dense layer.

    Images [batch, height, width, 3] -> logits [batch, num_classes], float32 or wider.

    Attributes:
      depths, widths, strides: blocks, channels and first block's stride of each stage; the stem is
        the first stage.
      num_classes: of the head.
      groups: of the layers in `grouped_layers`, both the kxk and the 1x1.
      grouped_layers: counted over the whole net, the stem being 0. The paper groups every second.
      se_reduction: where given, squeeze-and-excite before each ReLU with channels // se_reduction
        hidden units.
      block: makes a block from the hyper-parameters in `plan()`.
      dtype: compute type; parameters, statistics, the final mean and the head stay float32.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    num_classes: int = 1000
    groups: int = 1
    grouped_layers: tuple[int, ...] = tuple(range(2, 27, 2))
    se_reduction: int | None = None
    block: Callable[..., nn.Module] = RepVGGBlock
    dtype: Dtype = jnp.float32

    def plan(self) -> dict[str, dict[str, Any]]:
        """Name -> hyper-parameters of every block: the one list that all who walk the net read.

        Raises:
          UsageError: where the stages' lists differ in length, or groups don't divide a width.
        """
        if not len(self.depths) == len(self.widths) == len(self.strides):
            raise UsageError(
                f"depths {self.depths}, widths {self.widths} and strides {self.strides} "
                "must have one entry a stage each"
            )
        if self.se_reduction and min(self.widths) < self.se_reduction:
            raise UsageError(f"widths {self.widths}: none below se_reduction={self.se_reduction}")
        plan: dict[str, dict[str, Any]] = {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                name = f"stage{stage}_block{index}"
                groups = self.groups if len(plan) in self.grouped_layers else 1
                reads = self.widths[stage - 1] if index == 0 and stage else width
                if width % groups or reads % groups:
                    raise UsageError(
                        f"{name}: groups={groups} must divide its {reads} inputs, {width} outputs"
                    )
                strides = self.strides[stage] if index == 0 else 1
                plan[name] = dict(features=width, strides=strides, groups=groups, dtype=self.dtype)
        return plan

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        x = images
        for name, spec in self.plan().items():
            x = self.block(**spec, name=name)(x, train)
            if self.se_reduction:
                hidden = spec["features"] // self.se_reduction
                x = SqueezeExcite(hidden, dtype=self.dtype, name=f"{name}_se")(x)
            x = nn.relu(x)
        wide = accumulation_dtype(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        return dense(self.num_classes, x.shape[-1], name="head", dtype=wide)(x)


A_DEPTHS, B_DEPTHS, D_DEPTHS = (1, 2, 4, 14, 1), (1, 4, 6, 16, 1), (1, 8, 14, 24, 1)


def widths(a: float, b: float) -> tuple[int, ...]:
    """Channels a stage for the multipliers of the paper's Table 3."""
    return (min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b))


_MULTIPLIERS = {
    "a0": (A_DEPTHS, 0.75, 2.5),
    "a1": (A_DEPTHS, 1, 2.5),
    "a2": (A_DEPTHS, 1.5, 2.75),
    "b0": (B_DEPTHS, 1, 2.5),
    "b1": (B_DEPTHS, 2, 4),
    "b2": (B_DEPTHS, 2.5, 5),
    "b3": (B_DEPTHS, 3, 5),
}

VARIANTS = {
    f"repvgg_{name}": partial(RepVGG, depths=depths, widths=widths(a, b))
    for name, (depths, a, b) in _MULTIPLIERS.items()
}
VARIANTS |= {
    f"repvgg_{name}g{groups}": partial(VARIANTS[f"repvgg_{name}"], groups=groups)
    for name in ("b1", "b2", "b3")
    for groups in (2, 4)
}
# Not in the paper: released by its authors with the code.
VARIANTS["repvgg_d2se"] = partial(RepVGG, depths=D_DEPTHS, widths=widths(2.5, 5), se_reduction=16)

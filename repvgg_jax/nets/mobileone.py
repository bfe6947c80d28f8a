"""MobileOne S0 ... S4 (arXiv 2206.04040, Table 2): pairs of depthwise and pointwise blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import linen as nn

from repvgg_jax.blocks.mobileone import MobileOneBlock
from repvgg_jax.blocks.registry import module_type
from repvgg_jax.errors import UsageError
from repvgg_jax.nets._chain import Chain, check_whole

SE_BLOCKS = 5  # pairs of the last stage but one that have squeeze-and-excite, where the net has it


class MobileOne(Chain):
    """A dense stem, then stages of pairs: depthwise kxk, ReLU, pointwise 1x1, ReLU.

    Attributes, beside those of every chain:
      depths: of pairs; the stem is one block.
      kernel_size: of the stem and the depthwise blocks.
      se_reduction: where given, squeeze-and-excite before the ReLUs of the last stage and of the
        last five pairs before it, with channels // se_reduction hidden units.
    """

    kernel_size: int = 3
    se_reduction: int | None = None
    block: Callable[..., nn.Module] = MobileOneBlock

    def plan(self) -> dict[str, dict[str, Any]]:
        """`stage1_block0_depthwise`, `stage1_block0_pointwise`, ... after `stage0_block0`."""
        self.check_stages()
        check_whole("se_reduction", self.se_reduction)
        if self.se_reduction and min(self.widths[-2:]) < self.se_reduction:
            raise UsageError(f"widths {self.widths}: none below se_reduction={self.se_reduction}")
        plan: dict[str, dict[str, Any]] = {}
        reads = None
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                name = f"stage{stage}_block{index}"
                spatial = dict(
                    features=reads or width,
                    strides=self.strides[stage] if index == 0 else 1,
                    groups=reads or 1,
                    kernel_size=self.kernel_size,
                    dilation=1,
                    dtype=self.dtype,
                )
                if reads is None:
                    plan[name] = spatial
                else:
                    plan[f"{name}_depthwise"] = spatial
                    plan[f"{name}_pointwise"] = spatial | dict(
                        features=width, strides=1, groups=1, kernel_size=1
                    )
                reads = width
        return plan

    def make_block(self, name: str, spec: dict[str, Any]) -> nn.Module:
        """As the plan says; the stem has one copy of its kxk, as in the released code."""
        block = super().make_block(name, spec)
        if module_type(self.block) is MobileOneBlock and name == "stage0_block0":
            return block.clone(copies=1)
        return block

    def se_hidden(self, name: str, channels: int) -> int:
        """Hidden units of a block's squeeze-and-excite; 0 for none."""
        stage, index = (int(part.lstrip("stageblock")) for part in name.split("_")[:2])
        last = len(self.depths) - 1
        late = stage == last or (stage == last - 1 and index >= self.depths[stage] - SE_BLOCKS)
        return channels // self.se_reduction if self.se_reduction and late else 0


_STAGES = partial(MobileOne, depths=(1, 2, 8, 10, 1))
_ONE_COPY = partial(_STAGES, block=partial(MobileOneBlock, copies=1))

VARIANTS = {
    "mobileone_s0": partial(_STAGES, widths=(48, 48, 128, 256, 1024)),
    "mobileone_s1": partial(_ONE_COPY, widths=(64, 96, 192, 512, 1280)),
    "mobileone_s2": partial(_ONE_COPY, widths=(64, 96, 256, 640, 2048)),
    "mobileone_s3": partial(_ONE_COPY, widths=(64, 128, 320, 768, 2048)),
    "mobileone_s4": partial(_ONE_COPY, widths=(64, 192, 448, 896, 2048), se_reduction=16),
}

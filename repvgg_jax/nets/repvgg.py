"""RepVGG's net and its variants (arXiv 2101.03697, Table 2), which hosts every block."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.registry import module_type
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Conv, Dtype
from repvgg_jax.layers.dense import dense
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.nets._chain import Chain, check_whole
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.ops.convolution import relu

AUXILIARY_HEAD = "aux_"  # what names of auxiliary heads start with
AUXILIARY = "auxiliary"  # the collection in which training finds the auxiliary heads' logits


class AuxiliaryHead(nn.Module):
    """Logits from the middle of a net: conv3x3 of stride 2, BatchNorm, ReLU, mean, dense."""

    num_classes: int
    dtype: Dtype = jnp.float32
    bn_group_size: int | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels, wide = x.shape[-1], accumulation_dtype(self.dtype)
        x = Conv(channels, 3, strides=2, dtype=self.dtype, name="conv")(x)
        x = relu(BatchNorm(train, self.bn_group_size, self.dtype, name="bn")(x))
        x = x.mean((1, 2), dtype=wide)
        return dense(self.num_classes, channels, dtype=wide, name="fc")(x)


class RepVGG(Chain):
    """The paper's net: stages of kxk blocks with a ReLU after each.

    Attributes, beside those of every chain:
      groups: of the layers in `grouped_layers`, both the kxk and the 1x1.
      grouped_layers: counted over the whole net, the stem being 0. The paper groups every second.
      kernel_size: the k of every block's kxk.
      se_reduction: where given, squeeze-and-excite before each ReLU with channels // se_reduction
        hidden units.
      output_stride: 8 or 16 rather than 32: the strides beyond become 1, and the kxk kernels of
        those stages are dilated by what was taken away (arXiv 2101.03697, section 4.4).
      dilated_layers: only that many of the last layers are dilated; all of those stages by
        default. The paper's fast form has 5.
    """

    groups: int = 1
    grouped_layers: tuple[int, ...] = tuple(range(2, 27, 2))
    kernel_size: int = 3
    se_reduction: int | None = None
    output_stride: int | None = None
    dilated_layers: int | None = None

    def plan(self) -> dict[str, dict[str, Any]]:
        """Name -> hyper-parameters of every block: the one list that all who walk the net read.

        Raises:
          UsageError: where the fields cannot be built, naming the field.
        """
        self._check_fields()
        plan: dict[str, dict[str, Any]] = {}
        strides, dilations = self._strides_and_dilations()
        undilated = 0 if self.dilated_layers is None else sum(self.depths) - self.dilated_layers
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                name = f"stage{stage}_block{index}"
                groups = self.groups if len(plan) in self.grouped_layers else 1
                reads = self.widths[stage - 1] if index == 0 and stage else width
                if width % groups or reads % groups:
                    raise UsageError(
                        f"{name}: groups={groups} must divide its {reads} inputs, {width} outputs"
                    )
                plan[name] = dict(
                    features=width,
                    strides=strides[stage] if index == 0 else 1,
                    groups=groups,
                    kernel_size=self.kernel_size,
                    dilation=dilations[stage] if len(plan) >= undilated else 1,
                    dtype=self.dtype,
                )
        return plan

    def _check_fields(self) -> None:
        """Raises UsageError for fields that describe no chain."""
        self.check_stages()
        for field in ("groups", "se_reduction", "output_stride", "dilated_layers"):
            check_whole(field, getattr(self, field))
        if not isinstance(self.grouped_layers, tuple | list):
            raise UsageError(f"grouped_layers={self.grouped_layers!r}: must be a tuple of numbers")
        if self.se_reduction and min(self.widths) < self.se_reduction:
            raise UsageError(f"widths {self.widths}: none below se_reduction={self.se_reduction}")
        layers = sum(self.depths)
        if self.dilated_layers is not None:
            if self.output_stride is None:
                raise UsageError("dilated_layers: only with output_stride, which says the dilation")
            if self.dilated_layers > layers:
                raise UsageError(f"dilated_layers={self.dilated_layers}: from 1 to {layers}")

    def stage_strides(self) -> list[int]:
        """The stride of each stage, after `output_stride`."""
        return self._strides_and_dilations()[0]

    def _strides_and_dilations(self) -> tuple[list[int], list[int]]:
        """Of each stage, after `output_stride`."""
        strides, dilations, reached, dilation = [], [], 1, 1
        for stage, stride in enumerate(self.strides):
            if self.output_stride and reached * stride > self.output_stride:
                if stage and self.widths[stage] == self.widths[stage - 1]:
                    # Its first block would gain an identity branch that no weights exist for.
                    raise UsageError(
                        f"output_stride={self.output_stride} takes the stride from stage{stage}, "
                        f"which keeps its width, {self.widths[stage]}; widen it or keep the stride"
                    )
                dilation, stride = dilation * stride, 1
            reached *= stride
            strides.append(stride)
            dilations.append(dilation)
        if self.output_stride not in (None, reached):
            raise UsageError(
                f"output_stride={self.output_stride} cannot be reached with strides {self.strides}"
            )
        return strides, dilations

    def se_hidden(self, name: str, channels: int) -> int:
        """Hidden units of a block's squeeze-and-excite; 0 for none."""
        return channels // self.se_reduction if self.se_reduction else 0


class RepVGGPlus(RepVGG):
    """RepVGG with squeeze-and-excite after each ReLU, and auxiliary heads in training.

    As released by RepVGG's authors (their repository; not in the paper). The heads stand after
    stages 1 and 2 and in the middle of stage 3; their logits are sown into the collection
    `auxiliary` where `train` is true. Fused, the net has none.

    Attributes:
      auxiliary: whether the train form has the heads.
    """

    auxiliary: bool = True

    def run_activated(self, block: nn.Module, name: str, x: Array, train: bool) -> Array:
        """A block and what stands after it: the nonlinearity, squeeze-and-excite after it."""
        return self.squeeze_excite(self.run_rectified(block, name, x, train), name)

    def auxiliary_heads(self) -> dict[str, str]:
        """Block -> name of the head that training has after it."""
        if not self.auxiliary or module_type(self.block) is FusedConv:
            return {}
        ends = {1: self.depths[1], 2: self.depths[2], 3: self.depths[3] // 2}
        return {f"stage{s}_block{end - 1}": f"{AUXILIARY_HEAD}stage{s}" for s, end in ends.items()}

    def after_block(self, x: Array, name: str, train: bool) -> None:
        """An auxiliary head, whose logits training finds in the collection `auxiliary`."""
        head = self.auxiliary_heads().get(name)
        if head and (train or self.is_initializing()):
            logits = AuxiliaryHead(self.num_classes, self.dtype, self.bn_group_size, name=head)(
                x, train
            )
            if train:
                self.sow(AUXILIARY, f"{head}_logits", logits)

    def without_auxiliary_heads(self) -> RepVGGPlus:
        """The same net with no heads but the last."""
        return self.clone(auxiliary=False)

    def _check_fields(self) -> None:
        super()._check_fields()
        if len(self.depths) < 4 or self.depths[3] < 2:
            raise UsageError(
                f"depths {self.depths}: RepVGGPlus needs 4 stages, and 2 blocks in stage 3, which "
                "has an auxiliary head in its middle"
            )


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
VARIANTS["repvgg_plus_l2pse"] = partial(
    RepVGGPlus, depths=D_DEPTHS, widths=widths(2.5, 5), se_reduction=4
)

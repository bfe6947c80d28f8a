"""RepVGG and its variants (arXiv 2101.03697, Table 2), which can be built from any block."""

from functools import partial
from typing import Self

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Conv, Dtype
from repvgg_jax.layers.dense import dense
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.nets._auxiliary import AUXILIARY_HEAD, run_auxiliary_head
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets._checks import check_positive
from repvgg_jax.nets._spec import BlockSpec, block_name
from repvgg_jax.ops.batch_norm import BN_EPSILON, accumulation_dtype


class AuxiliaryHead(nn.Module):
    """An auxiliary classifier: 3x3 convolution of stride 2, BatchNorm, ReLU, mean, dense layer."""

    num_classes: int
    dtype: Dtype = jnp.float32
    bn_group_size: int | None = None
    bn_epsilon: float = BN_EPSILON

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels, wide = x.shape[-1], accumulation_dtype(self.dtype)
        x = Conv(channels, 3, strides=2, dtype=self.dtype, name="conv")(x)
        norm = BatchNorm(train, self.bn_group_size, self.dtype, self.bn_epsilon, name="bn")
        x = nn.relu(norm(x))
        x = x.mean((1, 2), dtype=wide)
        return dense(self.num_classes, channels, dtype=wide, name="fc")(x)


class RepVGG(Chain):
    """The paper's net: stages of kxk blocks, each followed by a ReLU.

    Attributes in addition to those of `Chain`:
      groups: number of channel groups of the layers in `grouped_layers`, for all branches.
      grouped_layers: indices of the grouped layers; the stem is 0. Every second in the paper.
      se_reduction: if given, squeeze-and-excite with channels // se_reduction hidden units before
        each ReLU.
      output_stride: total stride of the net, such as 8 or 16 instead of 32. Stages beyond it have
        stride 1 and dilated kxk kernels (arXiv 2101.03697, section 4.4).
      dilated_layers: number of dilated layers at the end of the net; None for all layers of those
        stages. The paper's fast version has 5.
    """

    groups: int = 1
    grouped_layers: tuple[int, ...] = tuple(range(2, 27, 2))
    se_reduction: int | None = None
    output_stride: int | None = None
    dilated_layers: int | None = None

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of `stage0_block0`, `stage1_block0`, `stage1_block1`, ..."""
        specs = list(self.single_blocks())
        dilations = self._strides_and_dilations()[1]
        undilated = 0 if self.dilated_layers is None else len(specs) - self.dilated_layers
        plan: list[BlockSpec] = []
        for layer, spec in enumerate(specs):
            groups = self.groups if layer in self.grouped_layers else 1
            if spec.features % groups or (layer and spec.inputs % groups):
                raise UsageError(
                    f"{spec.name}: groups={groups} must divide its {spec.inputs} inputs "
                    f"and {spec.features} outputs"
                )
            dilation = dilations[spec.stage] if layer >= undilated else 1
            se_hidden = spec.features // self.se_reduction if self.se_reduction else 0
            plan.append(spec._replace(groups=groups, dilation=dilation, se_hidden=se_hidden))
        return tuple(plan)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        for field in ("groups", "se_reduction", "output_stride", "dilated_layers"):
            check_positive(field, getattr(self, field))
        if not isinstance(self.grouped_layers, tuple | list):
            raise UsageError(f"grouped_layers={self.grouped_layers!r}: must be a tuple of integers")
        if self.se_reduction and min(self.widths) < self.se_reduction:
            raise UsageError(
                f"se_reduction={self.se_reduction}: must not exceed any of the widths {self.widths}"
            )
        layers = sum(self.depths)
        if self.dilated_layers is not None:
            if self.output_stride is None:
                raise UsageError("dilated_layers: set output_stride too, which sets the dilation")
            if self.dilated_layers > layers:
                raise UsageError(
                    f"dilated_layers={self.dilated_layers}: must be from 1 to {layers}"
                )

    def stage_strides(self) -> tuple[int, ...]:
        """Returns the stride of each stage, with `output_stride` applied."""
        return self._strides_and_dilations()[0]

    def _strides_and_dilations(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns stride and dilation of each stage, with `output_stride` applied."""
        strides, dilations, reached, dilation = [], [], 1, 1
        for stage, stride in enumerate(self.strides):
            if self.output_stride and reached * stride > self.output_stride:
                if stage and self.widths[stage] == self.widths[stage - 1]:
                    # The first block would get an identity branch, for which there are no weights.
                    raise UsageError(
                        f"output_stride={self.output_stride} sets the stride of stage{stage} to 1, "
                        f"so its width must differ from that of stage{stage - 1}, but both are "
                        f"{self.widths[stage]}; change one or use a larger output_stride"
                    )
                dilation *= stride
                stride = 1
            reached *= stride
            strides.append(stride)
            dilations.append(dilation)
        if self.output_stride not in (None, reached):
            raise UsageError(
                f"output_stride={self.output_stride} cannot be reached with strides {self.strides}"
            )
        return tuple(strides), tuple(dilations)


class RepVGGPlus(RepVGG):
    """RepVGGplus: RepVGG with squeeze-and-excite after each ReLU, and auxiliary heads in training.

    It is from the repository of RepVGG's authors, not from the paper. The heads are after stages 1
    and 2 and in the middle of stage 3. If `train` is True, their logits are sown into the
    collection `auxiliary`. The fused net has no auxiliary heads.

    Attributes in addition to those of `RepVGG`:
      auxiliary: True if the train form has auxiliary heads.
    """

    auxiliary: bool = True

    def run_activated(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Applies a block, the ReLU and squeeze-and-excite."""
        return self.squeeze_excite(self.run_block_and_relu(spec, x, train), spec)

    def auxiliary_heads(self) -> dict[str, str]:
        """Returns block name -> name of the auxiliary head after that block."""
        if not self.auxiliary or self.is_fused:
            return {}
        depths = {1: self.depths[1], 2: self.depths[2], 3: self.depths[3] // 2}
        return {
            block_name(stage, depth - 1): f"{AUXILIARY_HEAD}stage{stage}"
            for stage, depth in depths.items()
        }

    def after_block(self, x: Array, spec: BlockSpec, train: bool) -> None:
        """Sows the logits of the block's auxiliary head in training, if the block has one."""
        head = self.auxiliary_heads().get(spec.name)
        if head:
            fields = (self.dtype, self.bn_group_size, self.bn_epsilon)
            layer = AuxiliaryHead(self.num_classes, *fields, name=head)
            run_auxiliary_head(self, layer, x, train)

    def without_auxiliary_heads(self) -> Self:
        """Returns the net without auxiliary heads."""
        return self.clone(auxiliary=False)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        if len(self.depths) < 4 or self.depths[3] < 2:
            raise UsageError(
                f"depths {self.depths}: RepVGGPlus needs at least 4 stages, and at least 2 blocks "
                "in stage 3, which has an auxiliary head in the middle"
            )


A_DEPTHS = (1, 2, 4, 14, 1)
B_DEPTHS = (1, 4, 6, 16, 1)
D_DEPTHS = (1, 8, 14, 24, 1)


def widths(a: float, b: float) -> tuple[int, ...]:
    """Returns the channels of each stage for the width multipliers a and b of the paper."""
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
# These are from the authors' repository, not from the paper.
VARIANTS["repvgg_d2se"] = partial(RepVGG, depths=D_DEPTHS, widths=widths(2.5, 5), se_reduction=16)
VARIANTS["repvgg_plus_l2pse"] = partial(
    RepVGGPlus, depths=D_DEPTHS, widths=widths(2.5, 5), se_reduction=4
)

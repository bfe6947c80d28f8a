"""The plain chain that hosts every block, and RepVGG's variants (arXiv 2101.03697, Table 2)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks import FusedConv, RepVGGBlock, module_type
from repvgg_jax.errors import UsageError
from repvgg_jax.layers import (
    Dtype,
    SqueezeExcite,
    accumulation_dtype,
    batch_norm,
    conv,
    dense,
)

AUXILIARY = "auxiliary"  # the collection in which training finds the auxiliary heads' logits


class FeatureInfo(NamedTuple):
    """A stage's map: its name, channels, and how many pixels of the image it steps."""

    name: str
    channels: int
    stride: int


class AuxiliaryHead(nn.Module):
    """Logits from the middle of a net: conv3x3 of stride 2, BatchNorm, ReLU, mean, dense."""

    num_classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels, wide = x.shape[-1], accumulation_dtype(self.dtype)
        x = conv(channels, 3, strides=2, dtype=self.dtype, name="conv")(x)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="bn")(x)).mean((1, 2), dtype=wide)
        return dense(self.num_classes, channels, dtype=wide, name="fc")(x)


class RepVGG(nn.Module):
    """Stages of blocks with a ReLU after each, the mean over space, one dense layer.

    Images [batch, height, width, 3] -> logits [batch, num_classes], float32 or wider.

    Attributes:
      depths, widths, strides: blocks, channels and first block's stride of each stage; the stem is
        the first stage.
      num_classes: of the head.
      groups: of the layers in `grouped_layers`, both the kxk and the 1x1.
      grouped_layers: counted over the whole net, the stem being 0. The paper groups every second.
      kernel_size: the k of every block's kxk.
      se_reduction: where given, squeeze-and-excite before each ReLU with channels // se_reduction
        hidden units.
      output_stride: 8 or 16 rather than 32: the strides beyond become 1, and the kxk kernels of
        those stages are dilated by what was taken away (arXiv 2101.03697, section 4.4).
      dilated_layers: only that many of the last layers are dilated; all of those stages by
        default. The paper's fast form has 5.
      frozen: regular expressions of blocks that keep their statistics in training (`stage[01]_.*`);
        the optimizer's rate rules keep their parameters.
      block: makes a block from the hyper-parameters in `plan()`.
      dtype: compute type; parameters, statistics, the final mean and the head stay float32.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    num_classes: int = 1000
    groups: int = 1
    grouped_layers: tuple[int, ...] = tuple(range(2, 27, 2))
    kernel_size: int = 3
    se_reduction: int | None = None
    output_stride: int | None = None
    dilated_layers: int | None = None
    frozen: tuple[str, ...] = ()
    block: Callable[..., nn.Module] = RepVGGBlock
    dtype: Dtype = jnp.float32

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
        for pattern in self.frozen:
            if not any(re.fullmatch(pattern, name) for name in plan):
                raise UsageError(f"frozen: {pattern!r} matches none of {', '.join(plan)}")
        return plan

    def _check_fields(self) -> None:
        """Raises UsageError for fields that describe no chain."""
        if not len(self.depths) == len(self.widths) == len(self.strides):
            raise UsageError(
                f"depths {self.depths}, widths {self.widths} and strides {self.strides} "
                "must have one entry a stage each"
            )
        counts = (*self.depths, *self.widths, *self.strides)
        if any(not isinstance(count, int) or count < 1 for count in counts):
            raise UsageError(
                f"depths {self.depths}, widths {self.widths} and strides {self.strides} "
                "must be whole numbers from 1 on"
            )
        if self.se_reduction and min(self.widths) < self.se_reduction:
            raise UsageError(f"widths {self.widths}: none below se_reduction={self.se_reduction}")
        layers = sum(self.depths)
        if self.dilated_layers is not None:
            if self.output_stride is None:
                raise UsageError("dilated_layers: only with output_stride, which says the dilation")
            if not 1 <= self.dilated_layers <= layers:
                raise UsageError(f"dilated_layers={self.dilated_layers}: from 1 to {layers}")
        if isinstance(self.frozen, str):
            raise UsageError(f"frozen={self.frozen!r}: must be a tuple of expressions")
        for pattern in self.frozen:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"frozen: {pattern!r} is no expression: {error}") from None

    def _strides_and_dilations(self) -> tuple[list[int], list[int]]:
        """Of each stage, after `output_stride`."""
        if not isinstance(self.output_stride, int | None):
            raise UsageError(f"output_stride={self.output_stride!r}: must be a whole number")
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

    def feature_info(self) -> list[FeatureInfo]:
        """Name, channels and stride of the maps that `features` gives."""
        strides, _ = self._strides_and_dilations()
        return [
            FeatureInfo(f"stage{stage}", width, math.prod(strides[: stage + 1]))
            for stage, width in enumerate(self.widths)
        ]

    def features(
        self, variables: Any, images: Array, train: bool = False
    ) -> tuple[tuple[Array, ...], Any]:
        """The map that each stage ends with, and the updated `batch_stats`.

        Images [batch, height, width, 3] -> maps [batch, ceil(height / stride), ..., channels] as
        `feature_info()` says, in the net's compute type. The statistics come back unchanged, or
        empty for a fused net, where `train` is false.
        """
        stats = variables.get("batch_stats", {})
        _, state = self.apply(
            variables, images, train=train, mutable=["intermediates", "batch_stats"]
        )
        maps = state["intermediates"]
        names = [info.name for info in self.feature_info()]
        return tuple(maps[name][0] for name in names), state.get("batch_stats", stats)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        x, heads = images, self.auxiliary_heads()
        ends = {f"stage{s}_block{depth - 1}": f"stage{s}" for s, depth in enumerate(self.depths)}
        for name, spec in self.plan().items():
            block = self.block(**spec, name=name)
            x = self.activate(block(x, train and not self.is_frozen(name)), name)
            if name in ends:
                self.sow("intermediates", ends[name], x)
            if name in heads and (train or self.is_initializing()):
                logits = AuxiliaryHead(self.num_classes, self.dtype, name=heads[name])(x, train)
                if train:
                    self.sow(AUXILIARY, f"{heads[name]}_logits", logits)
        wide = accumulation_dtype(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        return dense(self.num_classes, x.shape[-1], name="head", dtype=wide)(x)

    def is_frozen(self, name: str) -> bool:
        """Whether a block keeps its statistics in training."""
        return any(re.fullmatch(pattern, name) for pattern in self.frozen)

    def activate(self, x: Array, name: str) -> Array:
        """What stands between two blocks: the nonlinearity, and squeeze-and-excite before it."""
        return nn.relu(self._squeeze_excite(x, name))

    def _squeeze_excite(self, x: Array, name: str) -> Array:
        if not self.se_reduction:
            return x
        hidden = x.shape[-1] // self.se_reduction
        return SqueezeExcite(hidden, dtype=self.dtype, name=f"{name}_se")(x)

    def auxiliary_heads(self) -> dict[str, str]:
        """Block -> name of the head that training has after it; none here, nor in a fused net."""
        return {}

    def without_auxiliary_heads(self) -> RepVGG:
        """The net as deployment has it."""
        return self


class RepVGGPlus(RepVGG):
    """RepVGG with squeeze-and-excite after each ReLU, and auxiliary heads in training.

    As released by RepVGG's authors (their repository; not in the paper). The heads stand after
    stages 1 and 2 and in the middle of stage 3; their logits are sown into the collection
    `auxiliary` where `train` is true. Fused, the net has none.

    Attributes:
      auxiliary: whether the train form has the heads.
    """

    auxiliary: bool = True

    def activate(self, x: Array, name: str) -> Array:
        """The nonlinearity, and squeeze-and-excite after it."""
        return self._squeeze_excite(nn.relu(x), name)

    def auxiliary_heads(self) -> dict[str, str]:
        """Block -> name of the head that training has after it."""
        if not self.auxiliary or module_type(self.block) is FusedConv:
            return {}
        ends = {1: self.depths[1], 2: self.depths[2], 3: self.depths[3] // 2}
        return {f"stage{s}_block{end - 1}": f"aux_stage{s}" for s, end in ends.items()}

    def without_auxiliary_heads(self) -> RepVGG:
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

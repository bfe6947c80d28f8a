"""The chain of blocks that nets are: forward, maps of every stage, and what can be asked of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.registry import module_type
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Dtype
from repvgg_jax.layers.dense import dense
from repvgg_jax.layers.squeeze_excite import SqueezeExcite
from repvgg_jax.nets._initializers import INITIALIZERS, draw_again
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.ops.convolution import check_algorithm, relu
from repvgg_jax.runtime.compilation import barrier


def _convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keeps what is dear to compute again, and lets go of what BatchNorms make of it."""
    return primitive.name in ("conv_general_dilated", "dot_general", "ffi_call")


# Policies of rematerialisation: what is kept of the inside of a block between the passes.
REMAT = {"nothing": jax.checkpoint_policies.nothing_saveable, "convolutions": _convolutions}


class FeatureInfo(NamedTuple):
    """A stage's map: its name, channels, and how many pixels of the image it steps."""

    name: str
    channels: int
    stride: int


def check_whole(field: str, value: Any) -> None:
    """Raises UsageError unless the value is None or a whole number from 1 on."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise UsageError(f"{field}={value!r}: must be a whole number from 1 on")


class Chain(nn.Module):
    """Blocks with a nonlinearity after each, the mean over space, one dense layer.

    Images [batch, height, width, 3] -> logits [batch, num_classes], float32 or wider. A net says in
    `plan()` which blocks it has; all that walk it (forward, fuse, weights, counts) read that list.

    Attributes:
      depths, widths, strides: blocks, channels and first block's stride of each stage; the stem is
        the first stage.
      num_classes: of the head.
      frozen: regular expressions of blocks that keep their statistics in training (`stage[01]_.*`);
        the optimizer's rate rules keep their parameters.
      block: makes a block from the hyper-parameters in `plan()`.
      dtype: compute type; parameters, statistics, the final mean and the head stay float32.
      bn_group_size: images that a BatchNorm's statistics are taken over in training, whatever the
        devices; the whole batch by default. The paper's is 32, a GPU's share of 256.
      remat: what a block keeps for its gradient: one of `REMAT`, the rest being computed again.
      conv_algorithm: what computes the convolutions, one of `convolution.ALGORITHMS`.
      initializer: of RepVGG's block, one of `INITIALIZERS`; other blocks start as their papers say,
        squeeze-and-excite and heads as ever. `nets.init` draws by it, Flax's own `init` doesn't.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    num_classes: int = 1000
    frozen: tuple[str, ...] = ()
    block: Callable[..., nn.Module] = RepVGGBlock
    dtype: Dtype = jnp.float32
    bn_group_size: int | None = None
    remat: str | None = None
    conv_algorithm: str = "auto"
    initializer: str | None = None

    def plan(self) -> dict[str, dict[str, Any]]:
        """Name -> hyper-parameters of every block, `stage3_block5` being the sixth of stage 3.

        Raises:
          UsageError: where the fields cannot be built, naming the field.
        """
        raise NotImplementedError

    def blocks(self) -> dict[str, nn.Module]:
        """Name -> unbound block of every entry of the plan.

        Raises:
          UsageError: as `plan`, and where `frozen` names none of the blocks, or `initializer` none
            of those there are, or another block's.
        """
        self.frozen_blocks()
        self._check_initializer()
        return {name: self.make_block(name, spec) for name, spec in self.plan().items()}

    def _check_initializer(self) -> None:
        if self.initializer is None:
            return
        if self.initializer not in INITIALIZERS:
            known = ", ".join(INITIALIZERS)
            raise UsageError(f"initializer={self.initializer!r}: choose from {known}")
        if (block := module_type(self.block)) not in (RepVGGBlock, FusedConv):
            raise UsageError(
                f"initializer={self.initializer!r}: {block.__name__} starts as its paper says; "
                "leave it unset, or set block to repvgg or plain"
            )

    def started(self, variables: dict[str, Any], key: Array) -> dict[str, Any]:
        """Fresh variables as `initializer` says; what is fused has no start of its own."""
        if self.initializer is None or module_type(self.block) is FusedConv:
            return variables
        params = draw_again(variables["params"], self.plan(), self.initializer, key)
        return variables | {"params": params}

    def frozen_blocks(self) -> frozenset[str]:
        """Names of the blocks that `frozen` describes.

        Raises:
          UsageError: where an expression describes none.
        """
        plan, found = self.plan(), set()
        for pattern in self.frozen:
            if not (named := {name for name in plan if re.fullmatch(pattern, name)}):
                raise UsageError(f"frozen: {pattern!r} matches none of {', '.join(plan)}")
            found |= named
        return frozenset(found)

    def make_block(self, name: str, spec: dict[str, Any]) -> nn.Module:
        """The block that an entry of the plan describes, unbound."""
        # Left out where unset, so that a block without BatchNorm need not know the word.
        given = {} if self.bn_group_size is None else {"bn_group_size": self.bn_group_size}
        if self.conv_algorithm != "auto":
            given["conv_algorithm"] = self.conv_algorithm
        return self.block(**spec, **given, parent=None)

    def stage_strides(self) -> list[int]:
        """The stride of each stage."""
        return list(self.strides)

    def feature_info(self) -> list[FeatureInfo]:
        """Name, channels and stride of the maps that `features` gives."""
        reached, entries = 1, []
        for stage, (width, stride) in enumerate(
            zip(self.widths, self.stage_strides(), strict=True)
        ):
            reached *= stride
            entries.append(FeatureInfo(f"stage{stage}", width, reached))
        return entries

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
        x = self.walk(images, train)
        wide = accumulation_dtype(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        return dense(self.num_classes, x.shape[-1], name="head", dtype=wide)(x)

    def walk(self, x: Array, train: bool) -> Array:
        """The map after the last block; each stage's last is sown as an intermediate."""
        blocks = self.blocks()
        ends = {name.split("_")[0]: name for name in blocks}
        for name, block in blocks.items():
            x = self.run_activated(block, name, x, train)
            x = barrier(x) if self.has_barriers(train) else x
            if ends[stage := name.split("_")[0]] == name:
                self.sow("intermediates", stage, x)
            self.after_block(x, name, train)
        return x

    def has_barriers(self, train: bool) -> bool:
        """Returns whether `barrier` follows each block; a fused chain in evaluation has none."""
        return train or module_type(self.block) is not FusedConv

    def run_activated(self, block: nn.Module, name: str, x: Array, train: bool) -> Array:
        """A block and what stands after it: the nonlinearity, squeeze-and-excite before it."""
        if self.se_hidden(name, block.features):
            return relu(self.squeeze_excite(self.run_block(block, name, x, train), name))
        return self.run_rectified(block, name, x, train)

    def run_rectified(self, block: nn.Module, name: str, x: Array, train: bool) -> Array:
        """relu(block(x)), which a fused block does at once, unless intermediates are asked for."""
        if isinstance(block, FusedConv) and not self.is_mutable_collection("intermediates"):
            return self.run_block(block, name, x, train, rectified=True)
        return relu(self.run_block(block, name, x, train))

    def run_block(
        self, block: nn.Module, name: str, x: Array, train: bool, **options: bool
    ) -> Array:
        """An unbound block as a submodule of this net; the options are its own."""
        moves = train and name not in self.frozen_blocks()
        block = block.clone(parent=self, name=name)
        if not train or self.remat is None:
            return block(x, moves, **options)
        return nn.remat(lambda block, x: block(x, moves, **options), policy=REMAT[self.remat])(
            block, x
        )

    def after_block(self, x: Array, name: str, train: bool) -> None:
        """What training hangs onto a block's activated output; nothing here."""

    def squeeze_excite(self, x: Array, name: str) -> Array:
        """The layer `<name>_se`, where the block has one."""
        hidden = self.se_hidden(name, x.shape[-1])
        return SqueezeExcite(hidden, dtype=self.dtype, name=f"{name}_se")(x) if hidden else x

    def se_hidden(self, name: str, channels: int) -> int:
        """Hidden units of a block's squeeze-and-excite; 0 for none."""
        return 0

    def auxiliary_heads(self) -> dict[str, str]:
        """Block -> name of the head that training has after it; none here, nor in a fused net."""
        return {}

    def without_auxiliary_heads(self) -> Chain:
        """The net as deployment has it."""
        return self

    def check_stages(self) -> None:
        """Raises UsageError for stages or frozen blocks that describe no chain."""
        for field in ("depths", "widths", "strides"):
            if not isinstance(getattr(self, field), tuple | list):
                raise UsageError(f"{field}={getattr(self, field)!r}: must be a tuple, one a stage")
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
        check_whole("num_classes", self.num_classes)
        check_whole("bn_group_size", self.bn_group_size)
        check_algorithm(self.conv_algorithm)
        if self.remat is not None and self.remat not in REMAT:
            raise UsageError(f"remat={self.remat!r}: one of {', '.join(REMAT)}")
        if not isinstance(self.frozen, tuple | list) or not all(
            isinstance(pattern, str) for pattern in self.frozen
        ):
            raise UsageError(f"frozen={self.frozen!r}: must be a tuple of expressions")
        for pattern in self.frozen:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"frozen: {pattern!r} is no expression: {error}") from None

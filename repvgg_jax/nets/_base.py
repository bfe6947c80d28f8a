"""The base class of all architectures, and the description of a block in a net."""

import re
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.base import Block
from repvgg_jax.blocks.registry import block_class
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Dtype
from repvgg_jax.layers.squeeze_excite import SqueezeExcite
from repvgg_jax.ops.convolution import check_algorithm, relu


def _convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    """Saves the outputs of convolutions and matrix products only."""
    return primitive.name in ("conv_general_dilated", "dot_general", "ffi_call")


# Rematerialization policies: which values inside a block are saved for the backward pass.
REMAT = {"nothing": jax.checkpoint_policies.nothing_saveable, "convolutions": _convolutions}


class BlockSpec(NamedTuple):
    """A block of a net: where it is, and the fields of `Block` that differ between blocks.

    Attributes:
      name: name of the block's variables, such as `stage3_block5`.
      stage: index of the stage.
      index: index within the stage, of the block or of the unit that it is a part of.
      inputs: input channels.
      role: part of the block in a unit of several, such as "shortcut"; empty for a single block.
      se_hidden: hidden units of the squeeze-and-excite layer `<name>_se`; 0 for none.
    """

    name: str
    stage: int
    index: int
    inputs: int
    features: int
    strides: int = 1
    groups: int = 1
    kernel_size: int = 3
    dilation: int = 1
    role: str = ""
    se_hidden: int = 0

    def part(self, role: str, **changes: Any) -> Self:
        """Returns the spec of `<name>_<role>`, with the changed fields."""
        return self._replace(name=f"{self.name}_{role}", role=role, **changes)


class FeatureInfo(NamedTuple):
    """A feature map of a net: its name, channels, and its stride in pixels of the image."""

    name: str
    channels: int
    stride: int


class Net(nn.Module):
    """A net: images [batch, height, width, 3] -> logits [batch, num_classes], float32 or wider.

    A subclass lists in `plan` the blocks that fuse to one convolution each, and runs them in
    `__call__` by `run_block` or `run_block_and_relu`. Fusion, weight exchange, export and counts
    read that list; layers that are not in it stay as they are when the net is fused. A net that is
    a backbone gives `feature_info`, and sows each of these maps as an intermediate of its name.

    Attributes:
      num_classes: number of outputs of the head.
      block: name of the blocks' class in `BLOCKS`; "fused" for the deploy form.
      block_options: further fields of the block, as sorted pairs of name and value.
      frozen: regular expressions for names of blocks whose BatchNorm statistics are kept in
        training (`stage[01]_.*`); their parameters are frozen by the optimizer's rules.
      dtype: compute type; parameters, statistics, the final mean and the head stay float32.
      bn_group_size: number of images that share BatchNorm statistics in training, whatever the
        devices; None for the whole batch. The paper's is 32, a GPU's share of 256.
      remat: which values a block saves for its gradient, one of `REMAT`; None for all of them.
      conv_algorithm: algorithm of the convolutions, one of `ops.convolution.ALGORITHMS`.
    """

    num_classes: int = 1000
    block: str = "repvgg"
    block_options: tuple[tuple[str, Any], ...] = ()
    frozen: tuple[str, ...] = ()
    dtype: Dtype = jnp.float32
    bn_group_size: int | None = None
    remat: str | None = None
    conv_algorithm: str = "auto"

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the blocks of the net in the order in which they run.

        Raises:
          UsageError: for fields that describe no net, naming the field.
        """
        raise NotImplementedError

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns name, channels and stride of the maps of `features`; empty if there are none."""
        return ()

    def auxiliary_heads(self) -> dict[str, str]:
        """Returns block name -> name of the classifier that only training has after that block."""
        return {}

    def without_auxiliary_heads(self) -> Self:
        """Returns the net without the classifiers that only training has."""
        return self

    def reinitialized(self, variables: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns fresh variables as the net's own initializer draws them."""
        return variables

    @property
    def is_fused(self) -> bool:
        """True for the deploy form."""
        return self.block == "fused"

    @property
    def fusable(self) -> bool:
        """True if `fuse` has a deploy form for the net's block."""
        return block_class(self.block).fusable

    @nn.nowrap
    def clone(self, **updates: Any) -> Self:
        """Returns a copy with some fields replaced; another `block` drops the block's options."""
        if updates.get("block", self.block) != self.block:
            updates = {"block_options": ()} | updates
        return super().clone(**updates)

    def blocks(self) -> dict[str, Block]:
        """Returns name -> unbound block, for every entry of `plan`.

        Raises:
          UsageError: as `plan`, and for block options that the block refuses.
        """
        return {spec.name: self.make_block(spec) for spec in self.plan()}

    def make_block(self, spec: BlockSpec) -> Block:
        """Returns the unbound block that a spec describes."""
        return block_class(self.block)(
            features=spec.features,
            strides=spec.strides,
            groups=spec.groups,
            kernel_size=spec.kernel_size,
            dilation=spec.dilation,
            dtype=self.dtype,
            bn_group_size=self.bn_group_size,
            conv_algorithm=self.conv_algorithm,
            parent=None,
            **dict(self.block_options),
        )

    def frozen_blocks(self) -> frozenset[str]:
        """Returns the names of the blocks that `frozen` matches.

        Raises:
          UsageError: for a regular expression that matches none.
        """
        found: set[str] = set()
        names = [spec.name for spec in self.plan()] if self.frozen else []
        for pattern in self.frozen:
            if not (matching := {name for name in names if re.fullmatch(pattern, name)}):
                known = ", ".join(names) or "no blocks, which this net has"
                raise UsageError(f"frozen: {pattern!r} matches none of {known}")
            found |= matching
        return frozenset(found)

    def check(self) -> None:
        """Raises UsageError for fields from which the net cannot be built, naming the field."""
        self.blocks()
        self.frozen_blocks()

    def check_fields(self) -> None:
        """Raises UsageError for values that no net can have; `plan` calls it first."""
        check_positive("num_classes", self.num_classes)
        check_positive("bn_group_size", self.bn_group_size)
        check_algorithm(self.conv_algorithm)
        if self.remat is not None and self.remat not in REMAT:
            raise UsageError(f"remat={self.remat!r}: choose from {', '.join(REMAT)}")
        is_tuple = isinstance(self.frozen, tuple | list)
        if not is_tuple or not all(isinstance(pattern, str) for pattern in self.frozen):
            raise UsageError(f"frozen={self.frozen!r}: must be a tuple of regular expressions")
        for pattern in self.frozen:
            try:
                re.compile(pattern)
            except re.error as error:
                message = f"frozen: {pattern!r} is not a valid regular expression: {error}"
                raise UsageError(message) from None

    def features(
        self, variables: Any, images: Array, train: bool = False
    ) -> tuple[tuple[Array, ...], Any]:
        """Returns the maps that `feature_info` describes, and the updated `batch_stats`.

        Images [batch, height, width, 3] -> maps [batch, ceil(height / stride), ..., channels] in
        the net's compute type. Where `train` is false the statistics come back unchanged, or empty
        for a fused net.

        Raises:
          UsageError: if the net is not a backbone.
        """
        names = [info.name for info in self.feature_info()]
        if not names:
            raise UsageError(f"{type(self).__name__} is not a backbone: it has no feature maps")
        stats = variables.get("batch_stats", {})
        collections = ["intermediates", "batch_stats"]
        _, state = self.apply(variables, images, train=train, mutable=collections)
        maps = state["intermediates"]
        return tuple(maps[name][0] for name in names), state.get("batch_stats", stats)

    def run_block(self, spec: BlockSpec, x: Array, train: bool, **options: bool) -> Array:
        """Applies a block as a submodule of this net; the options are passed to the block."""
        moves = train and spec.name not in self.frozen_blocks()
        block = self.make_block(spec).clone(parent=self, name=spec.name)
        if not train or self.remat is None:
            return block(x, moves, **options)
        run = nn.remat(lambda block, x: block(x, moves, **options), policy=REMAT[self.remat])
        return run(block, x)

    def run_block_and_relu(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Applies relu(block(x)); a fused block does both at once unless intermediates are kept."""
        if self.is_fused and not self.is_mutable_collection("intermediates"):
            return self.run_block(spec, x, train, apply_relu=True)
        return relu(self.run_block(spec, x, train))

    def squeeze_excite(self, x: Array, spec: BlockSpec) -> Array:
        """Applies the layer `<name>_se`, if the block has one."""
        if not spec.se_hidden:
            return x
        return SqueezeExcite(spec.se_hidden, dtype=self.dtype, name=f"{spec.name}_se")(x)


def check_positive(field: str, value: Any) -> None:
    """Raises UsageError unless the value is None or a positive integer."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise UsageError(f"{field}={value!r}: must be a positive integer")


def block_name(stage: int, index: int) -> str:
    """Returns `stage3_block5`, for example."""
    return f"stage{stage}_block{index}"

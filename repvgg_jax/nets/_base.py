"""The base class of all architectures."""

import re
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.base import Block
from repvgg_jax.blocks.registry import block_class
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Conv, Dtype
from repvgg_jax.layers.dense import dense
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.layers.pool import check_pixels
from repvgg_jax.layers.squeeze_excite import SqueezeExcite
from repvgg_jax.nets._call_errors import (
    check_images,
    check_layout,
    check_variables,
    explained,
    naming_the_smallest,
)
from repvgg_jax.nets._checks import check_positive
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo
from repvgg_jax.ops import onednn
from repvgg_jax.ops.batch_norm import BN_EPSILON, accumulation_dtype
from repvgg_jax.ops.convolution import check_algorithm


def _convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    """Returns True for convolutions and matrix products, whose outputs are saved."""
    return primitive.name in ("conv_general_dilated", "dot_general", onednn.PRIMITIVE)


# Rematerialization policies: the values inside a block that are saved for the backward pass.
REMAT = {"nothing": jax.checkpoint_policies.nothing_saveable, "convolutions": _convolutions}


class Net(nn.Module):
    """A net: images [batch, height, width, 3] -> logits [batch, num_classes], float32 or wider.

    A subclass returns from `plan` the specs of all blocks, each of which fuses to one convolution,
    and applies them in `__call__` by `run_block` or `run_block_and_relu`. Fusion, import, export
    and counting of operations use the plan; fusion does not change layers that are not in it. A
    backbone defines `feature_info`, and sows each map as an intermediate with the name given there.

    Attributes:
      num_classes: number of outputs of the head.
      block: name of the blocks' class in `BLOCKS`; "fused" if the net is fused.
      block_options: additional fields of the blocks, as sorted (name, value) pairs.
      frozen: regular expressions for the names of blocks whose BatchNorm statistics are not updated
        in training, such as `stage[01]_.*`; the optimizer's rules freeze their parameters.
      dtype: compute type; parameters, statistics, the final mean and the head stay float32.
      bn_group_size: number of images that share BatchNorm statistics in training, whatever the
        number of devices; None for the whole batch. The paper uses 32: 256 images on 8 GPUs.
      bn_epsilon: constant that BatchNorms add to the variance; 1e-3 in nets from TensorFlow.
      remat: rematerialization policy, one of `REMAT`; None saves all values for the gradient.
      conv_algorithm: algorithm of the convolutions, one of `ops.convolution.ALGORITHMS`.
    """

    num_classes: int = 1000
    block: str = "repvgg"
    block_options: tuple[tuple[str, Any], ...] = ()
    frozen: tuple[str, ...] = ()
    dtype: Dtype = jnp.float32
    bn_group_size: int | None = None
    bn_epsilon: float = BN_EPSILON
    remat: str | None = None
    conv_algorithm: str = "auto"

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the net's blocks in the order of execution.

        Raises:
          UsageError: if a field is invalid; the message names the field.
        """
        raise NotImplementedError

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of each map that `features` returns; empty if not a backbone."""
        return ()

    def auxiliary_heads(self) -> dict[str, str]:
        """Returns name of a block or unit -> name of the train-only classifier after it."""
        return {}

    def without_auxiliary_heads(self) -> Self:
        """Returns the net without its train-only classifiers."""
        return self

    def without_dropout(self) -> Self:
        """Returns the net that drops neither features nor units in training."""
        rates = ("dropout", "auxiliary_dropout", "drop_path")
        return self.clone(**{field: 0.0 for field in rates if hasattr(self, field)})

    def reinitialized(self, variables: dict[str, Any], key: Array) -> dict[str, Any]:
        """Returns fresh variables, re-initialized by the net's `initializer` if it has one."""
        return variables

    @property
    def is_fused(self) -> bool:
        """True if the net is in fused form."""
        return self.block == "fused"

    @property
    def fusable(self) -> bool:
        """True if `fuse` supports the net's block."""
        return block_class(self.block).fusable

    @nn.nowrap
    def clone(self, **updates: Any) -> Self:
        """Returns a copy with some fields replaced; a different `block` resets `block_options`."""
        if updates.get("block", self.block) != self.block:
            updates = {"block_options": ()} | updates
        return super().clone(**updates)

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
        """Applies the net as `flax.linen.Module.apply` does; frequent errors are one line each.

        Raises:
          UsageError: for images that are not an array, or without a batch axis, of another layout
            or another number of channels, too small, or not normalized; for variables of another
            net or without statistics; and if `train` is True but `batch_stats` is not mutable.
        """
        if options.get("method") is not None or not args:
            return super().apply(variables, *args, **options)
        check_variables(variables, "net.apply(variables, images)")
        check_images(args[0])
        with explained(args[0], variables, self.block), naming_the_smallest(self, args[0]):
            return super().apply(variables, *args, **options)

    @nn.nowrap
    def init_with_output(self, rngs: Any, *args: Any, **options: Any) -> Any:
        """Initializes the net as `flax.linen.Module.init_with_output` does, which `init` calls.

        Raises:
          UsageError: for images whose channels come first, without a batch axis, or too small.
        """
        images = args[0] if args else options.get("images")
        if images is not None:
            check_images(images)
            check_layout(images)
        with naming_the_smallest(self, images):
            return super().init_with_output(rngs, *args, **options)

    def blocks(self) -> dict[str, Block]:
        """Returns name -> unbound block for every entry of `plan`.

        Raises:
          UsageError: as for `plan`, or if a block option is invalid.
        """
        return {spec.name: self.make_block(spec) for spec in self.plan()}

    def block_of(self, spec: BlockSpec) -> str:
        """Returns the name of a spec's class in `BLOCKS`: `block`, unless a subclass restricts it.

        The options of `block` apply to blocks of that class only.
        """
        return self.block

    def make_block(self, spec: BlockSpec) -> Block:
        """Returns the unbound block described by a spec."""
        name = self.block_of(spec)
        options = dict(self.block_options) if name == self.block else {}
        return block_class(name)(
            features=spec.features,
            strides=spec.strides,
            groups=spec.groups,
            kernel_size=spec.kernel_size,
            dilation=spec.dilation,
            padding=spec.padding,
            dtype=self.dtype,
            bn_group_size=self.bn_group_size,
            bn_epsilon=self.bn_epsilon,
            conv_algorithm=self.conv_algorithm,
            parent=None,
            **options,
        )

    def frozen_blocks(self) -> frozenset[str]:
        """Returns the names of the blocks that match `frozen`.

        Raises:
          UsageError: if a regular expression matches no block.
        """
        found: set[str] = set()
        names = [spec.name for spec in self.plan()] if self.frozen else []
        for pattern in self.frozen:
            if not (matching := {name for name in names if re.fullmatch(pattern, name)}):
                known = ", ".join(names) or "none"
                raise UsageError(f"frozen: {pattern!r} matches no block; the blocks are {known}")
            found |= matching
        return frozenset(found)

    def check(self) -> None:
        """Raises UsageError if the net cannot be built; the message names the invalid field."""
        self.blocks()
        self.frozen_blocks()

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid; `plan` calls this first."""
        check_positive("num_classes", self.num_classes)
        check_positive("bn_group_size", self.bn_group_size)
        if not isinstance(self.bn_epsilon, int | float) or self.bn_epsilon <= 0:
            raise UsageError(f"bn_epsilon={self.bn_epsilon!r}: must be positive, such as 1e-5")
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
        """Returns the feature maps described by `feature_info`, and the updated `batch_stats`.

        Images [batch, height, width, 3] -> maps [batch, height / stride, ..., channels] in the
        net's compute type, with sides rounded up (VGG, DenseNet and DiracNet: down). Layers without
        padding, as in GoogLeNet, Inception-ResNet, Xception and NASNet, make them a few pixels
        smaller. Dropout and stochastic depth are off. If `train` is False, the statistics are
        returned unchanged (empty for a fused net).

        Raises:
          UsageError: if the net is not a backbone.
        """
        names = [info.name for info in self.feature_info()]
        if not names:
            raise UsageError(f"{type(self).__name__} is not a backbone: it has no feature maps")
        collections = ["intermediates", "batch_stats"]
        net = self.without_dropout()
        _, state = net.apply(variables, images, train=train, mutable=collections)
        maps = state["intermediates"]
        stats = state.get("batch_stats", variables.get("batch_stats", {}))
        return tuple(maps[name][0] for name in names), stats

    def run_block(self, spec: BlockSpec, x: Array, train: bool, **options: bool) -> Array:
        """Applies a block as a submodule of this net, passing it the options."""
        updates = train and spec.name not in self.frozen_blocks()
        block = self.make_block(spec).clone(parent=self, name=spec.name)
        if not train or self.remat is None:
            return block(x, updates, **options)
        run = nn.remat(lambda block, x: block(x, updates, **options), policy=REMAT[self.remat])
        return run(block, x)

    def run_block_and_relu(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Returns relu(block(x)), in one operation if fused and intermediates are not captured."""
        if self.is_fused and not self.is_mutable_collection("intermediates"):
            return self.run_block(spec, x, train, apply_relu=True)
        return nn.relu(self.run_block(spec, x, train))

    def mean_and_head(
        self, x: Array, train: bool = False, dropout: float = 0.0, use_bias: bool = True
    ) -> Array:
        """Returns the logits of the last map [batch, height, width, channels]: mean and `head`."""
        check_pixels(x)
        wide = accumulation_dtype(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        if dropout:
            x = nn.Dropout(dropout, deterministic=not train)(x)
        fields = {"name": "head", "dtype": wide, "use_bias": use_bias}
        return dense(self.num_classes, x.shape[-1], **fields)(x)

    def conv(self, x: Array, features: int, size: int, name: str, **fields: Any) -> Array:
        """Applies a convolution that is a layer of its own, not of a block: a `Conv`."""
        kind = {"dtype": self.dtype, "algorithm": self.conv_algorithm}
        return Conv(features, size, name=name, **kind, **fields)(x)

    def norm(self, x: Array, name: str, train: bool) -> Array:
        """Applies a BatchNorm that is a layer of its own, not of a block."""
        fields = (self.bn_group_size, self.dtype, self.bn_epsilon)
        return BatchNorm(train, *fields, name=name)(x)

    def squeeze_excite(
        self, x: Array, spec: BlockSpec, activation: Callable[[Array], Array] = nn.relu
    ) -> Array:
        """Applies the layer `<name>_se` if the spec has one, else returns `x`."""
        if not spec.se_hidden:
            return x
        name = f"{spec.name}_se"
        return SqueezeExcite(spec.se_hidden, self.dtype, activation, name=name)(x)

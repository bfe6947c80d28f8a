"""GoogLeNet (arXiv 1409.4842, Table 1 and Figure 3), as in the paper and as in torchvision.

The paper's form has convolutions with a bias and no BatchNorm. Figure 3 has local response
normalization around the second convolution. It has neither parameters nor multiply-adds, so the
counts in Table 1 neither confirm nor exclude it. Its constants, which the paper does not give, are
those of Caffe's GoogLeNet. torchvision's form has BatchNorm instead, 3x3 convolutions in place of
those of 5x5, and 2x2 windows in the last max pooling. Its published weights are for images
normalized by a mean and a deviation of 0.5 (`transform_input` there).
"""

from functools import partial
from typing import Self

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.base import Block
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Dtype
from repvgg_jax.layers.dense import dense
from repvgg_jax.layers.norm import local_response_norm
from repvgg_jax.layers.pool import adaptive_mean_pool, max_pool
from repvgg_jax.nets._auxiliary import AUXILIARY_HEAD, run_auxiliary_head
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_probability, check_stages, check_stem
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name, stage_infos, units_of
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.runtime.compilation import barrier

Widths = tuple[int, int, int, int, int, int]  # a row of Table 1, from "#1x1" to "pool proj"

MODULES: tuple[tuple[Widths, ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
# (stage, index) of the modules that are followed by an auxiliary head in training: 4a and 4d.
AUXILIARY_AFTER = ((1, 0), (1, 3))
MAP = 4  # side of the map that an auxiliary head reads


class AuxiliaryHead(nn.Module):
    """An auxiliary classifier: mean pooling to 4x4, a 1x1 convolution, and two dense layers.

    In the paper, the pooling has windows of 5x5 and stride 3, which also give 4x4 pixels for images
    of 224 pixels. The regions here are those of torchvision, and go with any size.

    Attributes:
      conv: the 1x1 convolution.
      num_classes: number of outputs.
      dropout: probability that an input of the last layer is dropped in training.
    """

    conv: Block
    num_classes: int
    dropout: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(self.conv(adaptive_mean_pool(x, MAP), train))
        x = x.reshape(x.shape[0], -1)  # the size of the batch may be symbolic
        x = nn.relu(dense(1024, x.shape[-1], name="hidden", dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        wide = accumulation_dtype(self.dtype)
        return dense(self.num_classes, x.shape[-1], name="fc", dtype=wide)(x)


class GoogLeNet(Net):
    """A net of inception modules: parallel 1x1, 3x3 and 5x5 convolutions and a max pooling.

    A module concatenates the outputs of four branches: a 1x1 convolution; a 3x3 and a 5x5
    convolution, each after a 1x1 convolution with fewer channels; and a 1x1 convolution after a 3x3
    max pooling. Each convolution is followed by a ReLU. All but the 1x1 and the first one can be
    blocks of class `block`; those of class `conv` have a bias, as in the paper, and the others a
    BatchNorm.

    Attributes in addition to those of `Net`:
      modules: for each stage, the widths of its modules' convolutions, in the order of Table 1.
      widths: outputs of the two convolutions before the first module.
      stem: side and stride of the first convolution, and stride of the max pooling after it.
      large: side of the larger kernel of a module.
      pools: side of the windows of the max pooling before each stage of modules.
      lrn: True for local response normalization around the second convolution.
      dropout: probability that an input of the head is dropped in training.
      auxiliary: True if the train form has auxiliary heads. The paper weights their loss by 0.3
        (`optim.auxiliary_weight` in a config).
      auxiliary_dropout: `dropout` of the auxiliary heads.
    """

    block: str = "conv"
    modules: tuple[tuple[Widths, ...], ...] = MODULES
    widths: tuple[int, int] = (64, 192)
    stem: tuple[int, int, int] = (7, 2, 2)
    large: int = 5
    pools: tuple[int, ...] = (3, 3, 3)
    lrn: bool = True
    dropout: float = 0.4
    auxiliary: bool = False
    auxiliary_dropout: float = 0.7

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the first convolutions and of the modules' convolutions."""
        self.check_fields()
        size, strides, _ = self.stem
        first, second = self.widths
        plan = [
            BlockSpec("stem", 0, 0, 3, first, strides, kernel_size=size),
            BlockSpec("second_reduce", 0, 0, first, first, kernel_size=1),
            BlockSpec("second", 0, 0, first, second),
        ]
        inputs = second
        for stage, modules in enumerate(self.modules):
            for index, widths in enumerate(modules):
                module = BlockSpec(block_name(stage, index), stage, index, inputs, 0, kernel_size=1)
                plan += self._module(module, widths)
                inputs = _outputs(widths)
        return tuple(plan)

    def _module(self, module: BlockSpec, widths: Widths) -> list[BlockSpec]:
        """Returns the specs of a module's convolutions."""
        ones, reduce3, threes, reduce5, fives, projected = widths
        return [
            module.part("1x1", features=ones),
            module.part("3x3_reduce", features=reduce3),
            module.part("3x3", inputs=reduce3, features=threes, kernel_size=3),
            module.part("5x5_reduce", features=reduce5),
            module.part("5x5", inputs=reduce5, features=fives, kernel_size=self.large),
            module.part("pool_proj", features=projected),
        ]

    def block_of(self, spec: BlockSpec) -> str:
        """Returns `block` for kernels larger than 1x1 but the first; "plain" for all others.

        All are of class "conv" or "fused" if `block` is.
        """
        replaceable = spec.kernel_size != 1 and spec.name != "stem"
        return self.block if replaceable or self.block in ("conv", "fused") else "plain"

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage of modules."""
        _, strides, pool = self.stem
        widths = [_outputs(modules[-1]) for modules in self.modules]
        return stage_infos(strides * pool, widths, [2] * len(widths))

    def auxiliary_heads(self) -> dict[str, str]:
        """Returns name of a module -> name of the auxiliary head after it."""
        if not self.auxiliary or self.is_fused:
            return {}
        names = [
            block_name(stage, index)
            for stage, index in AUXILIARY_AFTER
            if stage < len(self.modules) and index < len(self.modules[stage])
        ]
        return {name: f"{AUXILIARY_HEAD}{name}" for name in names}

    def without_auxiliary_heads(self) -> Self:
        """Returns the net without auxiliary heads."""
        return self.clone(auxiliary=False)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        stages = self.modules if isinstance(self.modules, tuple | list) else ()
        if not stages or not all(isinstance(modules, tuple | list) for modules in stages):
            raise UsageError(f"modules={self.modules!r}: must be a tuple of modules for each stage")
        check_stages(pools=self.pools, modules=[len(modules) for modules in stages])
        for widths in (widths for modules in stages for widths in modules):
            check_stages(modules=widths)
            if len(widths) != 6:
                raise UsageError(f"modules: {widths} must be the six widths of a row of Table 1")
        check_stages(widths=self.widths)
        if len(self.widths) != 2:
            raise UsageError(f"widths={self.widths}: must be those before the first module, two")
        check_stem(self.stem)
        check_probability("dropout", self.dropout)
        check_probability("auxiliary_dropout", self.auxiliary_dropout)
        super().check_fields()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        stem, reduce, second, *rest = self.plan()
        x = self.run_block_and_relu(stem, images, train)
        if self.stem[2] > 1:
            x = max_pool(x, 3, self.stem[2], "last")
        x = local_response_norm(x) if self.lrn else x
        x = self.run_block_and_relu(second, self.run_block_and_relu(reduce, x, train), train)
        x = local_response_norm(x) if self.lrn else x
        heads = self.auxiliary_heads()
        for (stage, index), module in units_of(rest):
            if index == 0:
                x = max_pool(x, self.pools[stage], 2, "last")
            x = barrier(self._inception({spec.role: spec for spec in module}, x, train))
            if index == len(self.modules[stage]) - 1:
                self.sow("intermediates", f"stage{stage}", x)
            if name := heads.get(block_name(stage, index)):
                conv = self.make_block(BlockSpec("conv", 0, 0, 0, 128, kernel_size=1))
                fields = (self.num_classes, self.auxiliary_dropout, self.dtype)
                head = AuxiliaryHead(conv, *fields, name=name)
                run_auxiliary_head(self, head, x, train)
        return self.mean_and_head(x, train, self.dropout)

    def _inception(self, specs: dict[str, BlockSpec], x: Array, train: bool) -> Array:
        """Returns the concatenated outputs of a module's branches."""

        def run(x: Array, *roles: str) -> Array:
            for role in roles:
                x = self.run_block_and_relu(specs[role], x, train)
            return x

        branches = [
            run(x, "1x1"),
            run(x, "3x3_reduce", "3x3"),
            run(x, "5x5_reduce", "5x5"),
            run(max_pool(x, 3, 1), "pool_proj"),
        ]
        return jnp.concatenate(branches, axis=-1)


def _outputs(widths: Widths) -> int:
    """Returns the outputs of a module."""
    ones, _, threes, _, fives, projected = widths
    return ones + threes + fives + projected


VARIANTS = {
    "googlenet": GoogLeNet,
    "googlenet_bn": partial(
        GoogLeNet,
        block="plain",
        bn_epsilon=1e-3,
        large=3,
        pools=(3, 3, 2),
        lrn=False,
        dropout=0.2,
    ),
}

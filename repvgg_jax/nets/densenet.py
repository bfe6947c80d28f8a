"""DenseNet (arXiv 1608.06993, Table 1): the bottleneck form with compression, "DenseNet-BC"."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.pool import halved, max_pool
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._checks import check_positive, check_stages, check_stem
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name
from repvgg_jax.runtime.compilation import barrier


class DenseNet(Net):
    """A net in which each layer reads the concatenated outputs of all earlier layers of its stage.

    A layer is a BatchNorm, ReLU and 1x1 convolution, then a BatchNorm, ReLU and 3x3 convolution
    with `growth` outputs. Between stages, a BatchNorm, ReLU, 1x1 convolution and mean pooling halve
    channels, height and width. Fusion folds the BatchNorms that follow a convolution, those of the
    stem and in the middle of each layer. The others follow a concatenation, and stay.

    Attributes in addition to those of `Net`:
      depths: number of layers in each stage.
      growth: outputs of each layer.
      width: outputs of the stem.
      stem: side and stride of the first convolution, and stride of the max pooling after it.
    """

    block: str = "plain"
    depths: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    width: int = 64
    stem: tuple[int, int, int] = (7, 2, 2)

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem and of the layers' 1x1 convolutions."""
        self.check_fields()
        size, strides, _ = self.stem
        plan = [BlockSpec("stem", 0, 0, 3, self.width, strides, kernel_size=size)]
        inputs = self.width
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                name = block_name(stage, index)
                plan.append(BlockSpec(name, stage, index, inputs, 4 * self.growth, kernel_size=1))
                inputs += self.growth
            inputs //= 2
        return tuple(plan)

    def block_of(self, spec: BlockSpec) -> str:
        """Returns "plain": no other block can be a 3x3 convolution without a BatchNorm after it."""
        return "fused" if self.is_fused else "plain"

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the concatenated outputs of each stage."""
        _, strides, pool = self.stem
        width, infos = self.width, []
        for stage, depth in enumerate(self.depths):
            width += depth * self.growth
            infos.append(FeatureInfo(f"stage{stage}", width, strides * pool * 2**stage))
            width //= 2
        return tuple(infos)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_stages(depths=self.depths)
        check_positive("growth", self.growth)
        check_positive("width", self.width)
        check_stem(self.stem)
        if self.frozen:
            raise UsageError(f"frozen={self.frozen}: a DenseNet cannot be frozen in part")
        super().check_fields()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        stem, *layers = self.plan()
        x = self.run_block_and_relu(stem, images, train)
        if self.stem[2] > 1:
            x = max_pool(x, 3, self.stem[2])
        for spec in layers:
            y = self._norm_and_relu(x, f"{spec.name}_bn", train)
            y = self.run_block_and_relu(spec, y, train)
            y = self.conv(y, self.growth, 3, f"{spec.name}_conv")
            x = barrier(jnp.concatenate([x, y], axis=-1))
            if spec.index < self.depths[spec.stage] - 1:
                continue
            self.sow("intermediates", f"stage{spec.stage}", x)
            if spec.stage < len(self.depths) - 1:
                name = f"stage{spec.stage}_transition"
                x = self._norm_and_relu(x, f"{name}_bn", train)
                x = self.conv(x, x.shape[-1] // 2, 1, f"{name}_conv")
                x = halved(x, nn.avg_pool)
        return self.mean_and_head(self._norm_and_relu(x, "last_bn", train))

    def _norm_and_relu(self, x: Array, name: str, train: bool) -> Array:
        return nn.relu(self.norm(x, name, train))


VARIANTS = {
    "densenet121": DenseNet,
    "densenet169": partial(DenseNet, depths=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, depths=(6, 12, 48, 32)),
    "densenet161": partial(DenseNet, depths=(6, 12, 36, 24), growth=48, width=96),
}

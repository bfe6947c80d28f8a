"""DiracNet (arXiv 1706.00388, section 3): a deep plain net whose kernels contain the identity."""

from functools import partial

from flax import linen as nn
from jax import Array

from repvgg_jax.layers.pool import halved, max_pool
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets._checks import check_stem
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo


class DiracNet(Chain):
    """A stem and stages of 3x3 convolutions, each with a BatchNorm and ReLU, without shortcuts.

    This is the second version of the authors, which replaced their NCReLU by vectors a and b: the
    kernels are W = diag(a) I + diag(b) K / ||K|| (block `dirac`). Maps are halved by max pooling
    between stages, so that all blocks have stride 1, and the fused form is as simple as VGG.

    Attributes in addition to those of `Chain`:
      strides: stride of each stage; 2 for max pooling before its first block.
      stem: side and stride of the first convolution, and stride of the max pooling after it.
    """

    block: str = "dirac"
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: tuple[int, int, int] = (7, 2, 2)

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem and of the blocks."""
        first, *rest = (spec._replace(strides=1) for spec in self.single_blocks())
        size, strides, _ = self.stem
        stem = BlockSpec("stem", 0, 0, 3, self.widths[0], strides, kernel_size=size)
        return (stem, first._replace(inputs=stem.features), *rest)

    def block_of(self, spec: BlockSpec) -> str:
        """Returns `block` for the blocks of the stages, and "plain" for the stem."""
        return self.block if spec.name != "stem" or self.is_fused else "plain"

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage."""
        _, strides, pool = self.stem
        infos = super().feature_info()
        return tuple(info._replace(stride=info.stride * strides * pool) for info in infos)

    def run_activated(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Applies the pooling before a block, the block, and the ReLU."""
        if spec.name == "stem":
            x = super().run_activated(spec, x, train)
            return max_pool(x, 3, self.stem[2]) if self.stem[2] > 1 else x
        if spec.index == 0 and self.strides[spec.stage] == 2:
            x = halved(x, nn.max_pool)
        return super().run_activated(spec, x, train)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        check_stem(self.stem)


VARIANTS = {
    "diracnet18": partial(DiracNet, depths=(4, 4, 4, 4)),
    "diracnet34": partial(DiracNet, depths=(6, 8, 12, 6)),
}

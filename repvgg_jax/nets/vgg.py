"""VGG (arXiv 1409.1556, Table 1, configurations A, B, D and E), with and without BatchNorm."""

from functools import partial

from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.dense import dense
from repvgg_jax.layers.pool import adaptive_mean_pool, halved
from repvgg_jax.nets._chain import Chain
from repvgg_jax.nets._checks import check_probability, check_stages
from repvgg_jax.nets._spec import BlockSpec
from repvgg_jax.ops.batch_norm import accumulation_dtype

MAP = 7  # side of the map that the classifier reads


class VGG(Chain):
    """Stages of 3x3 convolutions and ReLUs, each with max pooling, and three dense layers.

    Without BatchNorm, the default, convolutions are blocks of class `conv`, with a bias; the
    variants with BatchNorm have the block `plain`. The classifier reads a map of 7x7 pixels, to
    which maps of other sizes are pooled, as in torchvision.

    Attributes in addition to those of `Chain`:
      hidden: outputs of the first two dense layers, each followed by a ReLU and dropout; empty for
        a single dense layer on the mean of the map, as usual for images of 32x32.
      dropout: probability that an output of a hidden layer is dropped in training.
    """

    block: str = "conv"
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of `stage0_block0`, ...; the stride of a stage is that of its pool."""
        return tuple(spec._replace(strides=1) for spec in self.single_blocks())

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        return self.classify(self.walk(images, train), train)

    def end_stage(self, x: Array) -> Array:
        """Returns the output of a stage, given that of its last block: its max pooling."""
        return halved(x, nn.max_pool)

    def classify(self, x: Array, train: bool) -> Array:
        """Returns the logits of the last stage's map."""
        if not self.hidden:
            return self.mean_and_head(x)
        if x.shape[1:3] != (MAP, MAP):
            x = adaptive_mean_pool(x, MAP)
        x = x.reshape(x.shape[0], -1)  # the size of the batch may be symbolic
        for index, features in enumerate(self.hidden):
            name = f"hidden{index}"
            x = nn.relu(dense(features, x.shape[-1], name=name, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        wide = accumulation_dtype(self.dtype)
        return dense(self.num_classes, x.shape[-1], name="head", dtype=wide)(x)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        check_probability("dropout", self.dropout)
        if self.hidden:
            check_stages(hidden=self.hidden)
        if set(self.strides) != {2}:
            raise UsageError(f"strides={self.strides}: VGG halves the map after each stage")


VARIANTS: dict[str, partial[VGG]] = {}
for _name, _depths in {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}.items():
    VARIANTS[_name] = partial(VGG, depths=_depths)
    VARIANTS[f"{_name}_bn"] = partial(
        VGG, depths=_depths, block="plain", block_options=(("use_bias", True),)
    )

"""EfficientNet (arXiv 1905.11946, Table 1 and section 3.3)."""

import math
from functools import partial

from flax import linen as nn
from jax import Array

from repvgg_jax.nets._checks import check_stages
from repvgg_jax.nets._spec import BlockSpec
from repvgg_jax.nets.mobilenet import MobileNetV2
from repvgg_jax.ops.batch_norm import BN_EPSILON


class EfficientNet(MobileNetV2):
    """Inverted residuals with SiLU, and squeeze-and-excite after the depthwise convolution.

    Squeeze-and-excite has a quarter as many hidden units as the inverted residual has inputs.

    Attributes in addition to those of `MobileNetV2`:
      kernel_sizes: side of the depthwise convolutions in each stage.
    """

    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    kernel_sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    drop_path: float = 0.2

    def unit(self, spec: BlockSpec) -> list[BlockSpec]:
        """Returns the specs of a unit's convolutions."""
        size, hidden = self.kernel_sizes[spec.stage], max(1, spec.inputs // 4)
        return [
            part._replace(kernel_size=size, se_hidden=hidden) if part.role == "depthwise" else part
            for part in super().unit(spec)
        ]

    def run_activated(self, spec: BlockSpec, x: Array, train: bool) -> Array:
        """Applies a convolution, SiLU, and squeeze-and-excite if the spec has it."""
        return self.squeeze_excite(nn.silu(self.run_block(spec, x, train)), spec, nn.silu)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_stages(depths=self.depths, kernel_sizes=self.kernel_sizes)
        super().check_fields()


class EfficientNetSame(EfficientNet):
    """EfficientNet with TensorFlow's padding "SAME" and epsilon, which the authors' weights need.

    At stride 2, even sides are padded at their end only.
    """

    bn_epsilon: float = 1e-3

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem, of the units' convolutions, and of the last one."""
        return tuple(
            spec._replace(padding="SAME") if spec.strides > 1 else spec for spec in super().plan()
        )

    def block_of(self, spec: BlockSpec) -> str:
        """Returns `block`, but "plain" where the padding prevents the fusion of branches."""
        return "plain" if spec.padding == "SAME" and not self.is_fused else self.block


# Width and depth multipliers, side of the images, and dropout. Up to B3, the multipliers are those
# of equation 3, 1.1**phi and 1.2**phi, rounded, with phi = 0, 0.5, 1 and 2. The authors' code has
# larger ones than the equation from B4 on.
_SCALES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
}

VARIANTS: dict[str, partial[EfficientNet]] = {}
IMAGE_SIZES: dict[str, int] = {}  # side of the images for which the scaling has chosen each net
for _name, (_width, _depth, _side, _dropout) in _SCALES.items():
    _fields = {
        "multiplier": _width,
        "depths": tuple(math.ceil(_depth * depth) for depth in EfficientNet.depths),
        "dropout": _dropout,
    }
    # torchvision's B5 to B7 have the epsilon, but not the padding, of TensorFlow.
    _epsilon = 1e-3 if _name in ("b5", "b6", "b7") else BN_EPSILON
    VARIANTS[f"efficientnet_{_name}"] = partial(EfficientNet, bn_epsilon=_epsilon, **_fields)
    VARIANTS[f"tf_efficientnet_{_name}"] = partial(EfficientNetSame, **_fields)
    IMAGE_SIZES |= dict.fromkeys((f"efficientnet_{_name}", f"tf_efficientnet_{_name}"), _side)

"""RegNetX and RegNetY (arXiv 2003.13678, section 3.3), from the paper's quantized linear rule."""

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial

from repvgg_jax.errors import UsageError
from repvgg_jax.nets._checks import check_positive
from repvgg_jax.nets._spec import BlockSpec
from repvgg_jax.nets.resnet import ResNet


class RegNet(ResNet):
    """A residual net whose F is a 1x1, a grouped 3x3 and a 1x1 convolution of the same width.

    RegNetY has squeeze-and-excite after the 3x3 convolution.

    Attributes in addition to those of `ResNet`:
      group_width: channels of a group of the 3x3 convolutions, or the width if that is smaller.
      se_ratio: hidden units of squeeze-and-excite for each input of a unit; 0 for RegNetX.
    """

    strides: tuple[int, ...] = (2, 2, 2, 2)
    stem: tuple[int, int, int] = (3, 2, 1)
    group_width: int = 16
    se_ratio: float = 0.0

    @property
    def stem_width(self) -> int:
        """Outputs of the first convolution."""
        return 32

    def residual(self, unit: BlockSpec, width: int) -> Iterator[BlockSpec]:
        """Yields the specs of the convolutions of F."""
        groups = width // min(self.group_width, width)
        hidden = round(self.se_ratio * unit.inputs)
        yield unit.part("conv0", kernel_size=1, strides=1)
        yield unit.part("conv1", inputs=width, groups=groups, se_hidden=hidden)
        yield unit.part("conv2", inputs=width, kernel_size=1, strides=1)

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        super().check_fields()
        check_positive("group_width", self.group_width)
        for width in self.widths:
            if width % min(self.group_width, width):
                raise UsageError(
                    f"width {width} of {self.widths} must be a multiple of "
                    f"group_width={self.group_width}"
                )


def stages(
    initial: int, slope: float, factor: float, depth: int, group_width: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns depths and widths of the stages by the paper's rule (equations 2 to 4).

    The width of unit j is u_j = initial + slope j, quantized to initial * factor**s with the
    nearest integer s (on a logarithmic scale), and to a multiple of 8. Units of equal width are a
    stage, whose width is then rounded to a multiple of the group width.
    """
    widths = []
    for index in range(depth):
        exponent = round(math.log((initial + slope * index) / initial) / math.log(factor))
        widths.append(8 * round(initial * factor**exponent / 8))
    depths = Counter(widths)
    return tuple(depths.values()), tuple(_grouped(width, group_width) for width in depths)


def _grouped(width: int, group_width: int) -> int:
    """Returns the multiple of the group width that is nearest to a width of a stage."""
    group = min(group_width, width)
    return max(group, int(width + group / 2) // group * group)


# initial, slope, factor, depth, group width (Tables of appendix A), of torchvision's nets.
_RULES = {
    "regnetx_400mf": (24, 24.48, 2.54, 22, 16),
    "regnetx_800mf": (56, 35.73, 2.28, 16, 16),
    "regnetx_1_6gf": (80, 34.01, 2.25, 18, 24),
    "regnetx_3_2gf": (88, 26.31, 2.25, 25, 48),
    "regnetx_8gf": (80, 49.56, 2.88, 23, 120),
    "regnetx_12gf": (168, 73.36, 2.37, 19, 112),
    "regnetx_16gf": (216, 55.59, 2.1, 22, 128),
    "regnetx_32gf": (320, 69.86, 2.0, 23, 168),
    "regnety_400mf": (48, 27.89, 2.09, 16, 8),
    "regnety_800mf": (56, 38.84, 2.4, 14, 16),
    "regnety_1_6gf": (48, 20.71, 2.65, 27, 24),
    "regnety_3_2gf": (80, 42.63, 2.66, 21, 24),
    "regnety_8gf": (192, 76.82, 2.19, 17, 56),
    "regnety_12gf": (168, 73.36, 2.37, 19, 112),
    "regnety_16gf": (200, 106.23, 2.48, 18, 112),
    "regnety_32gf": (232, 115.89, 2.53, 20, 232),
}

VARIANTS: dict[str, partial[RegNet]] = {}
for _name, (_initial, _slope, _factor, _depth, _group) in _RULES.items():
    _depths, _widths = stages(_initial, _slope, _factor, _depth, _group)
    VARIANTS[_name] = partial(
        RegNet,
        depths=_depths,
        widths=_widths,
        group_width=_group,
        se_ratio=0.25 if _name.startswith("regnety") else 0.0,
    )

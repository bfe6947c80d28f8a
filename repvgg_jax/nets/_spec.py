"""The specifications of a block in a net and of a feature map."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple, Self

from repvgg_jax.blocks.base import KernelSize


class BlockSpec(NamedTuple):
    """The position of a block in a net, and the fields of `Block` that differ between blocks.

    Attributes:
      name: name of the block's variables, such as `stage3_block5`.
      stage: index of the stage.
      index: index of the block, or of the multi-block unit that contains it, within the stage.
      inputs: number of input channels.
      role: role of the block in a multi-block unit, such as "shortcut"; empty for a single block.
      se_hidden: hidden units of the squeeze-and-excite layer `<name>_se`; 0 for no such layer.
    """

    name: str
    stage: int
    index: int
    inputs: int
    features: int
    strides: int = 1
    groups: int = 1
    kernel_size: KernelSize = 3
    dilation: int = 1
    padding: str = "symmetric"
    role: str = ""
    se_hidden: int = 0

    def part(self, role: str, **changes: Any) -> Self:
        """Returns the spec of the block `<name>_<role>`, with some fields changed."""
        return self._replace(name=f"{self.name}_{role}", role=role, **changes)


class FeatureInfo(NamedTuple):
    """The name, channels and stride (in pixels of the image) of a net's feature map."""

    name: str
    channels: int
    stride: int


def block_name(stage: int, index: int) -> str:
    """Returns the name of a block, such as `stage3_block5`."""
    return f"stage{stage}_block{index}"


def units_of(specs: Iterable[BlockSpec]) -> Iterator[tuple[tuple[int, int], list[BlockSpec]]]:
    """Yields (stage, index) and the specs of each unit of specs in the order of execution."""
    for place, unit in groupby(specs, key=lambda spec: (spec.stage, spec.index)):
        yield place, list(unit)


def stage_infos(
    stride: int, widths: Iterable[int], strides: Iterable[int]
) -> tuple[FeatureInfo, ...]:
    """Returns a description of the outputs of stages, the first of which reads a map of `stride`.

    Args:
      stride: stride of the map, in pixels of the image.
      widths: channels of each stage.
      strides: stride of each stage.
    """
    infos = []
    for stage, (width, halving) in enumerate(zip(widths, strides, strict=True)):
        stride *= halving
        infos.append(FeatureInfo(f"stage{stage}", width, stride))
    return tuple(infos)

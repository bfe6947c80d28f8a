"""Nets of cells found by architecture search: NASNet-A, PNASNet-5 and AmoebaNet-A.

NASNet: arXiv 1707.07012, section 3 and Figure 2. PNASNet: arXiv 1712.00559, section 3. AmoebaNet:
arXiv 1802.01548, section 3.1. The operations of the cells are data in `_genotypes`, and
their convolutions are listed by `_cells`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.errors import UsageError, check_known
from repvgg_jax.layers.pool import check_pixels, max_pool
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._cells import Cell, Source
from repvgg_jax.nets._checks import check_positive, check_probability, check_stages, check_stem
from repvgg_jax.nets._genotypes import CELLS, Operand
from repvgg_jax.nets._spec import BlockSpec, FeatureInfo, block_name
from repvgg_jax.runtime.compilation import barrier


class NASNet(Net):
    """A net of cells, each of which reads the outputs of the two cells before it.

    Each convolution is preceded by a ReLU, and followed by a BatchNorm that fusion folds. Separable
    convolutions are an exception: a ReLU, a depthwise convolution and a 1x1 convolution with a
    BatchNorm, all twice. Their depthwise convolutions are layers `<block>_depthwise` of the net,
    which fusion does not change. The papers' auxiliary classifier and random removal of operands in
    training are left out.

    Attributes in addition to those of `Net`:
      cells: name of the cells, one of `CELLS`.
      depths: number of cells in each stage.
      widths: channels of the states of cells in each stage.
      strides: stride of each stage's first cell, 1 or 2.
      stem: side and stride of the first convolution, which is not padded if the stride is 2, and
        stride of a max pooling after it.
      stem_width: outputs of the first convolution.
      skips: True if the cell after a strided cell takes that cell's second source, not its first,
        as its own second source, as in NASNet-A (6 @ 4032); only if both have the same size.
      dropout: probability that an input of the head is dropped in training.
    """

    block: str = "plain"
    bn_epsilon: float = 1e-3
    cells: str = "nasnet_a"
    depths: tuple[int, ...] = (1, 1, 6, 7, 7)
    widths: tuple[int, ...] = (42, 84, 168, 336, 672)
    strides: tuple[int, ...] = (2, 2, 1, 2, 2)
    stem: tuple[int, int, int] = (3, 2, 1)
    stem_width: int = 96
    skips: bool = False
    dropout: float = 0.5

    def plan(self) -> tuple[BlockSpec, ...]:
        """Returns the specs of the stem and of the cells' convolutions that a BatchNorm follows."""
        self.check_fields()
        size, strides, _ = self.stem
        padding = "VALID" if strides == 2 else "SAME"
        stem = BlockSpec("stem", 0, 0, 3, self.stem_width, strides, kernel_size=size)
        plan = [stem._replace(padding=padding)]
        for cell in self.layout():
            plan += [*cell.inputs(0), *cell.inputs(1)]
            for pair in cell.pairs():
                for role, operand in pair:
                    plan += cell.convolutions(role, operand)
        return tuple(plan)

    def layout(self) -> Iterator[Cell]:
        """Yields the cells in the order of execution."""
        made = [Source(0, self.stem_width, self.stem[1] * self.stem[2])]
        cells = CELLS[self.cells]
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                strides = 1 if index else self.strides[stage]
                name, last = block_name(stage, index), made[-1]
                spec = BlockSpec(name, stage, index, last.channels, width, strides)
                genotype = cells.reduction if strides == 2 else cells.normal
                cell = Cell(spec, genotype, (last, self.second_source(made)))
                yield cell
                made.append(cell.output)

    def second_source(self, made: list[Source]) -> Source | None:
        """Returns the second source of the next cell, given all outputs so far; None at first."""
        if self.skips and len(made) > 2:
            third, second, last = (source.stride for source in made[-3:])
            if third == second < last:
                return made[-3]
        return made[-2] if len(made) > 1 else None

    def block_of(self, spec: BlockSpec) -> str:
        """Returns "plain": no other block can be a depthwise convolution without a BatchNorm."""
        return "fused" if self.is_fused else "plain"

    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Returns a description of the output of each stage after a ReLU."""
        last = {cell.spec.stage: cell.output for cell in self.layout()}
        return tuple(
            FeatureInfo(f"stage{stage}", output.channels, output.stride)
            for stage, output in last.items()
        )

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        stem, *_ = self.plan()
        x = self.run_block(stem, images, train)
        check_pixels(x)
        if self.stem[2] > 1:
            x = max_pool(x, 3, self.stem[2])
        outputs = [x]
        for cell in self.layout():
            outputs.append(barrier(self.run_cell(cell, outputs, train)))
            if cell.spec.index == self.depths[cell.spec.stage] - 1:
                self.sow("intermediates", f"stage{cell.spec.stage}", nn.relu(outputs[-1]))
        return self.mean_and_head(nn.relu(outputs[-1]), train, self.dropout)

    def run_cell(self, cell: Cell, outputs: list[Array], train: bool) -> Array:
        """Returns the output of a cell, given those of the stem and of all cells before it."""
        states = []
        for state, source in enumerate(cell.sources):
            x = outputs[-1 if source is None else source.position]
            states.append(self.run_input(cell.inputs(state), x, train))
        for pair in cell.pairs():
            x, y = (self.run_operand(cell, *operand, states, train) for operand in pair)
            states.append(x + y)
        return jnp.concatenate([states[state] for state in cell.genotype.outputs], axis=-1)

    def run_input(self, specs: list[BlockSpec], x: Array, train: bool) -> Array:
        """Returns state 0 or 1 of a cell, given its source."""
        if not specs:
            return x
        x = nn.relu(x)
        y = self.run_block(specs[0], x, train)
        if len(specs) == 1:
            return y
        # A last row or column without a neighbor is paired with zeros.
        odd = jnp.pad(x[:, 1:, 1:], [(0, 0), (0, 1), (0, 1), (0, 0)])
        return jnp.concatenate([y, self.run_block(specs[1], odd, train)], axis=-1)

    def run_operand(
        self, cell: Cell, role: str, operand: Operand, states: list[Array], train: bool
    ) -> Array:
        """Returns an operation of one of the states of a cell."""
        operation, size, state = operand
        x, strides = states[state], cell.strides(state)
        specs = cell.convolutions(role, operand)
        if operation == "separable":
            return self.separable(specs, x, size, strides, train)
        if operation == "factorized":
            return self.factorized(specs, x, strides, train)
        x = nn.relu(x) if operation == "identity" and specs else pooled(operation, x, size, strides)
        return self.run_block(specs[0], x, train) if specs else x

    def separable(
        self, specs: list[BlockSpec], x: Array, size: int, strides: int, train: bool
    ) -> Array:
        """Applies separable convolutions, the first of which is strided."""
        for spec in specs:
            window = {"groups": x.shape[-1], "strides": strides, "padding": "SAME"}
            x = self.conv(nn.relu(x), x.shape[-1], size, f"{spec.name}_depthwise", **window)
            x, strides = self.run_block(spec, x, train), 1
        return x

    def factorized(self, specs: list[BlockSpec], x: Array, strides: int, train: bool) -> Array:
        """Applies a 1x1, a 1xk, a kx1 and a 1x1 convolution.

        If strided, the 1xk keeps every second column and the kx1 every second row, for which they
        compute all (1% of the multiply-adds of AmoebaNet-A).
        """
        for spec in specs:
            x = self.run_block(spec, nn.relu(x), train)
            height, width = (spec.kernel_size, 1) if spec.kernel_size == 1 else spec.kernel_size
            # These pixels are the centers of a strided window with padding "SAME".
            if strides == 2 and width > 1:
                x = x[:, :, 1 - x.shape[2] % 2 :: 2]
            if strides == 2 and height > 1:
                x = x[:, 1 - x.shape[1] % 2 :: 2]
        return x

    def check_fields(self) -> None:
        """Raises UsageError if a field of this class is invalid."""
        check_known("cells", self.cells, CELLS)
        check_stages(depths=self.depths, widths=self.widths, strides=self.strides)
        check_stem(self.stem)
        check_positive("stem_width", self.stem_width)
        check_probability("dropout", self.dropout)
        if max(self.strides) > 2:
            raise UsageError(f"strides={self.strides}: the stride of a cell must be 1 or 2")
        if min(self.widths) < 4:
            raise UsageError(f"widths={self.widths}: the states of a cell need 4 channels or more")
        if self.frozen:
            raise UsageError(f"frozen={self.frozen}: a net of cells cannot be frozen in part")
        super().check_fields()


def pooled(operation: str, x: Array, size: int, strides: int) -> Array:
    """Returns an operation without parameters: "max", "mean" or "identity"."""
    if operation == "max":
        return max_pool(x, size, strides, "SAME")
    if operation == "mean":
        window, steps = (size, size), (strides, strides)
        # Strided means count the zeros of the padding, as in timm, but not in TensorFlow.
        return nn.avg_pool(x, window, steps, "SAME", count_include_pad=strides > 1)
    return x


def _for_imagenet(
    cells: str, depths: tuple[int, int], width: int, **fields: Any
) -> partial[NASNet]:
    """Returns a net for ImageNet, whose last three stages have 1, 2 and 4 times the width.

    Two stages of one strided cell precede them.

    Args:
      cells: name of the cells.
      depths: number of cells in the third stage, and in each of the last two.
      width: channels of the states in the third stage.
      **fields: further fields of the net.
    """
    return partial(
        NASNet,
        cells=cells,
        depths=(1, 1, depths[0], depths[1], depths[1]),
        widths=(width // 4, width // 2, width, 2 * width, 4 * width),
        **fields,
    )


VARIANTS = {
    "nasnetalarge": _for_imagenet("nasnet_a", (6, 7), 168, skips=True),
    "nasnetamobile": _for_imagenet("nasnet_a", (4, 5), 44, stem_width=32),
    "pnasnet5large": _for_imagenet("pnasnet_5", (4, 4), 216),
    "pnasnet5mobile": _for_imagenet("pnasnet_5", (3, 3), 54, stem_width=32),
    "amoebaneta_f190": _for_imagenet("amoebanet_a", (6, 7), 190, stem_width=32),
    "amoebaneta_f448": _for_imagenet("amoebanet_a", (6, 7), 448, stem_width=32),
}

"""The convolutions of a cell in a net, as its genotype asks for them."""

from collections.abc import Iterator
from typing import NamedTuple

from repvgg_jax.nets._genotypes import Genotype, Operand
from repvgg_jax.nets._spec import BlockSpec


class Source(NamedTuple):
    """The output of the stem or of a cell: its position among these, its channels and stride."""

    position: int
    channels: int
    stride: int


class Cell(NamedTuple):
    """A cell in a net.

    Attributes:
      spec: name, stage, index and stride of the cell; `features` are the channels of each state.
      genotype: operations of the cell.
      sources: outputs from which states 0 and 1 are computed; if there is no second one, state 1 is
        the first one as it is.
    """

    spec: BlockSpec
    genotype: Genotype
    sources: tuple[Source, Source | None]

    def inputs(self, state: int) -> list[BlockSpec]:
        """Returns the specs of the 1x1 convolutions that compute state 0 or 1 from its source.

        If the source has twice the height and width, there are two: half of the channels read the
        pixels at even rows and columns, and the other half those at odd ones.
        """
        source = self.sources[state]
        if source is None:
            return []
        spec = self.spec._replace(inputs=source.channels, kernel_size=1, strides=1)
        if source.stride == self.sources[0].stride:
            return [spec.part(f"input{state}")]
        half = spec.features // 2
        return [
            spec.part(f"input{state}_even", features=half, strides=2),
            spec.part(f"input{state}_odd", features=spec.features - half, strides=2),
        ]

    def convolutions(self, role: str, operand: Operand) -> list[BlockSpec]:
        """Returns the specs of the convolutions of an operand that a BatchNorm follows."""
        operation, size, state = operand
        width, inputs, strides = self.spec.features, self.channels(state), self.strides(state)
        spec = self.spec._replace(inputs=width, kernel_size=1, strides=1)
        if operation == "separable":
            return [spec.part(f"{role}0", inputs=inputs), spec.part(f"{role}1")]
        if operation == "factorized":
            narrow = spec._replace(inputs=width // 4, features=width // 4, padding="SAME")
            return [
                narrow.part(f"{role}0", inputs=inputs),
                narrow.part(f"{role}1", kernel_size=(1, size)),
                narrow.part(f"{role}2", kernel_size=(size, 1)),
                spec.part(f"{role}3", inputs=width // 4),
            ]
        if operation == "identity":
            needed = strides > 1 or inputs != width
            return [spec.part(role, inputs=inputs, strides=strides)] if needed else []
        return [spec.part(role, inputs=inputs)] if inputs != width else []  # after the pooling

    @property
    def output(self) -> Source:
        """The output of the cell."""
        first, _ = self.sources
        channels = sum(self.channels(state) for state in self.genotype.outputs)
        return Source(first.position + 1, channels, first.stride * self.spec.strides)

    def channels(self, state: int) -> int:
        """Returns the channels of a state."""
        first, second = self.sources
        return first.channels if state == 1 and second is None else self.spec.features

    def strides(self, state: int) -> int:
        """Returns the stride of the operations on a state: the cell's for states 0 and 1."""
        return self.spec.strides if state < 2 else 1

    def pairs(self) -> Iterator[tuple[tuple[str, Operand], ...]]:
        """Yields the pairs of operands, each with its role, such as `pair0_left`."""
        for index, (left, right) in enumerate(self.genotype.pairs):
            yield (f"pair{index}_left", left), (f"pair{index}_right", right)

"""The cells of nets found by architecture search, as data.

NASNet-A: arXiv 1707.07012, Figure 4. PNASNet-5: arXiv 1712.00559, Figure 1. AmoebaNet-A:
arXiv 1802.01548, Figure 5.
"""

from typing import NamedTuple

Operand = tuple[str, int, int]  # an operation, the side of its window, the state it is applied to


class Genotype(NamedTuple):
    """A cell, whose states are numbered in the order of their computation.

    State 0 is the output of the previous cell and state 1 that of the cell before it, each after a
    1x1 convolution. Each pair of operands adds a state, their sum. The operations are separable
    convolutions, convolutions factorized into 1xk and kx1, max and mean pooling, and the identity.

    Attributes:
      pairs: pairs of operands.
      outputs: states that are concatenated to the output of the cell.
    """

    pairs: tuple[tuple[Operand, Operand], ...]
    outputs: tuple[int, ...]


class Cells(NamedTuple):
    """The cells of a net: `reduction` where the stride is 2, else `normal`."""

    normal: Genotype
    reduction: Genotype


_PNASNET_5 = Genotype(
    pairs=(
        (("separable", 5, 1), ("max", 3, 1)),
        (("separable", 7, 0), ("max", 3, 0)),
        (("separable", 5, 0), ("separable", 3, 0)),
        (("separable", 3, 4), ("max", 3, 0)),
        (("separable", 3, 1), ("identity", 1, 0)),
    ),
    outputs=(2, 3, 4, 5, 6),
)

CELLS = {
    "nasnet_a": Cells(
        normal=Genotype(
            pairs=(
                (("separable", 5, 0), ("separable", 3, 1)),
                (("separable", 5, 1), ("separable", 3, 1)),
                (("mean", 3, 0), ("identity", 1, 1)),
                (("mean", 3, 1), ("mean", 3, 1)),
                (("separable", 3, 0), ("identity", 1, 0)),
            ),
            outputs=(1, 2, 3, 4, 5, 6),
        ),
        reduction=Genotype(
            pairs=(
                (("separable", 5, 0), ("separable", 7, 1)),
                (("max", 3, 0), ("separable", 7, 1)),
                (("mean", 3, 0), ("separable", 5, 1)),
                (("identity", 1, 3), ("mean", 3, 2)),
                (("separable", 3, 2), ("max", 3, 0)),
            ),
            outputs=(3, 4, 5, 6),
        ),
    ),
    "pnasnet_5": Cells(normal=_PNASNET_5, reduction=_PNASNET_5),
    "amoebanet_a": Cells(
        normal=Genotype(
            pairs=(
                (("mean", 3, 0), ("max", 3, 0)),
                (("separable", 3, 1), ("identity", 1, 1)),
                (("identity", 1, 0), ("mean", 3, 1)),
                (("separable", 3, 0), ("separable", 5, 2)),
                (("mean", 3, 5), ("separable", 3, 0)),
            ),
            outputs=(1, 3, 4, 6),
        ),
        reduction=Genotype(
            pairs=(
                (("separable", 3, 1), ("mean", 3, 0)),
                (("max", 3, 0), ("separable", 7, 2)),
                (("max", 3, 1), ("max", 3, 0)),
                (("separable", 3, 4), ("factorized", 7, 0)),
                (("mean", 3, 1), ("separable", 7, 0)),
            ),
            outputs=(2, 3, 4, 5, 6),
        ),
    ),
}

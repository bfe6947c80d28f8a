"""Small PyTorch nets of timm's cells, since timm's own nets have hundreds of convolutions."""

from functools import partial

import torch
from timm.layers import ConvNormAct
from timm.models import nasnet, pnasnet
from torch.nn import BatchNorm2d, Linear

STEM = 8
WIDTHS = (4, 8, 8, 16)
CLASSES = 10


def stem():
    norm = partial(BatchNorm2d, eps=1e-3)
    return ConvNormAct(3, STEM, 3, stride=2, padding=0, norm_layer=norm, apply_act=False)


class SmallNASNet(torch.nn.Module):
    """Two strided cells, two normal ones, a strided one and a normal one, as in timm's net."""

    def __init__(self):
        super().__init__()
        self.conv0 = stem()
        self.cell_stem_0 = nasnet.CellStem0(STEM, WIDTHS[0], "same")
        self.cell_stem_1 = nasnet.CellStem1(STEM, WIDTHS[1], "same")
        self.cell_0 = nasnet.FirstCell(16, 4, 32, 8, "same")
        self.cell_1 = nasnet.NormalCell(32, 8, 48, 8, "same")
        self.reduction_cell_0 = nasnet.ReductionCell0(48, 16, 48, 16, "same")
        self.cell_2 = nasnet.FirstCell(48, 8, 64, 16, "same")
        self.last_linear = Linear(96, CLASSES)

    def forward(self, x):
        first = self.conv0(x)
        stem0 = self.cell_stem_0(first)
        stem1 = self.cell_stem_1(first, stem0)
        cell0 = self.cell_0(stem1, stem0)
        cell1 = self.cell_1(cell0, stem1)
        reduced = self.reduction_cell_0(cell1, cell0)
        last = self.cell_2(reduced, cell0)
        return self.last_linear(last.relu().mean((2, 3)))


class SmallPNASNet(torch.nn.Module):
    """Two strided cells, a normal one, a strided one and a normal one, as in timm's net."""

    def __init__(self):
        super().__init__()
        halved = dict(match_prev_layer_dims=True, pad_type="same")
        strided = dict(is_reduction=True, pad_type="same")
        self.conv_0 = stem()
        self.cell_stem_0 = pnasnet.CellStem0(STEM, 4, STEM, 4, "same")
        self.cell_stem_1 = pnasnet.Cell(STEM, 8, 20, 8, **halved | strided)
        self.cell_0 = pnasnet.Cell(20, 8, 40, 8, **halved)
        self.cell_1 = pnasnet.Cell(40, 16, 40, 16, **strided)
        self.cell_2 = pnasnet.Cell(40, 16, 80, 16, **halved)
        self.last_linear = Linear(80, CLASSES)

    def forward(self, x):
        first = self.conv_0(x)
        stem0 = self.cell_stem_0(first)
        stem1 = self.cell_stem_1(first, stem0)
        cell0 = self.cell_0(stem0, stem1)
        cell1 = self.cell_1(stem1, cell0)
        last = self.cell_2(cell0, cell1)
        return self.last_linear(last.relu().mean((2, 3)))


FIELDS = {"widths": WIDTHS, "strides": (2, 2, 1, 2), "stem_width": STEM}
# Name of a model -> the small net, and the fields that make the model the same.
SMALL = {
    "nasnetalarge": (SmallNASNet, FIELDS | {"depths": (1, 1, 2, 2)}),
    "pnasnet5large": (SmallPNASNet, FIELDS | {"depths": (1, 1, 1, 2)}),
}

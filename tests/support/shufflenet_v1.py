"""ShuffleNetV1 in PyTorch, written from arXiv 1707.01083, figure 2 and table 1."""

import torch
from torch import nn


def conv_bn(inputs, features, size, strides=1, groups=1):
    conv = nn.Conv2d(inputs, features, size, strides, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(features))


class Unit(nn.Module):
    """A unit with `features` outputs; with stride 2, its input is concatenated."""

    def __init__(self, inputs, features, strides, groups, first_groups):
        super().__init__()
        inner, self.strides = features // 4, strides
        self.conv0 = conv_bn(inputs, inner, 1, groups=first_groups)
        self.shuffle = nn.ChannelShuffle(groups)
        self.depthwise = conv_bn(inner, inner, 3, strides, groups=inner)
        added = features - inputs if strides == 2 else features
        self.conv1 = conv_bn(inner, added, 1, groups=groups)

    def forward(self, x):
        y = self.conv1(self.depthwise(self.shuffle(self.conv0(x).relu())))
        if self.strides == 1:
            return (x + y).relu()
        return torch.cat([nn.functional.avg_pool2d(x, 3, 2, 1), y], 1).relu()


class ShuffleNetV1(nn.Module):
    """The net, whose units have the names that they have in `net.plan()`."""

    def __init__(self, groups, depths, widths, width, num_classes):
        super().__init__()
        self.stem = conv_bn(3, width, 3, 2)
        self.units, inputs = nn.ModuleDict(), width
        for stage, (depth, features) in enumerate(zip(depths, widths, strict=True)):
            for index in range(depth):
                first_groups = 1 if stage == index == 0 else groups
                unit = Unit(inputs, features, 1 if index else 2, groups, first_groups)
                self.units[f"stage{stage}_block{index}"] = unit
                inputs = features
        self.head = nn.Linear(inputs, num_classes, bias=False)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem(x).relu(), 3, 2, 1)
        for unit in self.units.values():
            x = unit(x)
        return self.head(x.mean((2, 3)))

"""RepVGG and RepVGGplus in PyTorch with the official names, for parity tests and benchmarks.

It is written from a description of the layout, with its own fusion code, so that it shares no bugs
with the library.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


def conv_norm(cin, cout, size, stride, groups=1):
    """Returns a convolution and its BatchNorm."""
    conv = nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(cout)))


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):  # noqa: D102
        y = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(torch.relu(self.down(y))))


def folded(weight, norm):
    """Returns kernel and bias of a convolution with its BatchNorm."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Block(nn.Module):
    """A RepVGG block: three branches, or one convolution after `deploy`."""

    def __init__(self, cin, cout, stride, groups, gate=None, post=False):
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(cout) if cin == cout and stride == 1 else None
        self.rbr_dense = conv_norm(cin, cout, 3, stride, groups)
        self.rbr_1x1 = conv_norm(cin, cout, 1, stride, groups)
        self.rbr_reparam = None
        if gate:
            self.add_module("post_se" if post else "se", Gate(cout, cout // gate))

    def forward(self, x):  # noqa: D102
        if self.rbr_reparam is not None:
            y = self.rbr_reparam(x)
        else:
            y = self.rbr_dense(x)
            for branch in (self.rbr_1x1, self.rbr_identity):
                y = y if branch is None else y + branch(x)
        gates = dict(self.named_children())
        y = torch.relu(gates["se"](y) if "se" in gates else y)
        return gates["post_se"](y) if "post_se" in gates else y

    @torch.no_grad()
    def deploy(self):
        """Replaces the branches by one convolution."""
        conv = self.rbr_dense.conv
        weight, bias = folded(conv.weight, self.rbr_dense.bn)
        weight_1, bias_1 = folded(self.rbr_1x1.conv.weight, self.rbr_1x1.bn)
        weight[:, :, 1:2, 1:2] += weight_1
        bias += bias_1
        if self.rbr_identity is not None:
            unit = torch.zeros_like(weight)
            for channel in range(len(unit)):
                unit[channel, channel % unit.shape[1], 1, 1] = 1
            weight_0, bias_0 = folded(unit, self.rbr_identity)
            weight, bias = weight + weight_0, bias + bias_0
        fused = nn.Conv2d(
            conv.in_channels, conv.out_channels, 3, conv.stride, 1, groups=conv.groups
        )
        fused.weight.copy_(weight)
        fused.bias.copy_(bias)
        self.rbr_reparam = fused
        del self.rbr_dense, self.rbr_1x1, self.rbr_identity


class Net(nn.Module):
    """Base of both architectures; only hyper-parameters are read from the Flax module `net`."""

    def __init__(self, net, post=False):
        super().__init__()
        stages, cin, layer = [], 3, 0
        for depth, width, stride in zip(net.depths, net.widths, net.strides, strict=True):
            stage = []
            for index in range(depth):
                groups = net.groups if layer and layer % 2 == 0 and layer <= 26 else 1
                step = stride if index == 0 else 1
                stage.append(Block(cin, width, step, groups, net.se_reduction, post))
                cin, layer = width, layer + 1
            stages.append(stage)
        self.lay_out(stages, net.num_classes)
        self.linear = nn.Linear(cin, net.num_classes)

    def classify(self, x):
        """Returns the logits of the last feature map."""
        return self.linear(x.mean((2, 3)))

    def plain(self):
        """Removes all branches but the 3x3 convolution and its BatchNorm."""
        for block in [module for module in self.modules() if isinstance(module, Block)]:
            block.rbr_1x1 = block.rbr_identity = None
        return self

    def deploy(self):
        """Fuses all blocks."""
        for block in [module for module in self.modules() if isinstance(module, Block)]:
            block.deploy()
        return self


class TwinRepVGG(Net):
    """RepVGG."""

    def lay_out(self, stages, num_classes):  # noqa: D102
        self.stage0 = stages[0][0]
        for index, stage in enumerate(stages[1:], 1):
            self.add_module(f"stage{index}", nn.Sequential(*stage))
        self.stages = len(stages)

    def forward(self, x):  # noqa: D102
        for index in range(self.stages):
            x = getattr(self, f"stage{index}")(x)
        return self.classify(x)


class Stage(nn.Module):
    """A stage under the official names of RepVGGplus."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):  # noqa: D102
        for block in self.blocks:
            x = block(x)
        return x


class TwinRepVGGPlus(Net):
    """RepVGGplus; in training, `forward` returns `(logits, {name: auxiliary logits})`."""

    def __init__(self, net):
        super().__init__(net, post=True)

    def lay_out(self, stages, num_classes):  # noqa: D102
        half = len(stages[3]) // 2
        self.stage0 = stages[0][0]
        self.stage1, self.stage2 = Stage(stages[1]), Stage(stages[2])
        self.stage3_first, self.stage3_second = Stage(stages[3][:half]), Stage(stages[3][half:])
        self.stage4 = Stage(stages[4])
        for name in ("stage1", "stage2", "stage3_first"):
            width = self.get_submodule(name).blocks[-1].rbr_dense.conv.out_channels
            down = conv_norm(width, width, 3, 2)
            down.add_module("relu", nn.ReLU())
            head = nn.Linear(width, num_classes)
            pool = nn.AdaptiveAvgPool2d(1)
            self.add_module(f"{name}_aux", nn.Sequential(down, pool, nn.Flatten(), head))

    def forward(self, x):  # noqa: D102
        auxiliary = {}
        for name in ("stage0", "stage1", "stage2", "stage3_first", "stage3_second", "stage4"):
            x = self.get_submodule(name)(x)
            if self.training and f"{name}_aux" in dict(self.named_children()):
                auxiliary[name] = self.get_submodule(f"{name}_aux")(x)
        return (self.classify(x), auxiliary) if self.training else self.classify(x)

    def deploy(self):
        """Removes the auxiliary heads and fuses all blocks."""
        for name in ("stage1", "stage2", "stage3_first"):
            self._modules.pop(f"{name}_aux", None)
        return super().deploy()


def twin_of(net, seed=0):
    """Returns a net's PyTorch twin in evaluation mode, with BatchNorm values as after training.

    Gammas have both signs. Convolutions keep PyTorch's initialization, which preserves the scale of
    activations over 50 layers.
    """
    torch.manual_seed(seed)
    twin = (TwinRepVGGPlus if type(net).__name__ == "RepVGGPlus" else TwinRepVGG)(net)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                sign = torch.where(torch.rand_like(module.weight) < 0.5, -1.0, 1.0)
                module.weight.copy_(sign * (0.5 + torch.rand_like(sign)))
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.copy_(torch.exp(0.5 * torch.randn_like(sign)))
    return twin.eval()

"""The names of the weights of nets in timm.

Its ResNets and DenseNets have torchvision's names.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

from repvgg_jax.errors import UsageError
from repvgg_jax.interop import torchvision_layout
from repvgg_jax.interop.pytorch_layout import (
    CONV,
    DENSE,
    DENSE_AS_CONV,
    Change,
    Entry,
    affine_entries,
    conv_bn_entries,
    entries,
    squeeze_excite_entries,
)
from repvgg_jax.nets import BlockSpec, Net, units_of
from repvgg_jax.nets._cells import Cell
from repvgg_jax.nets.densenet import DenseNet
from repvgg_jax.nets.efficientnet import EfficientNet, EfficientNetSame
from repvgg_jax.nets.inception_resnet import POOLED, UP, InceptionResNetV2
from repvgg_jax.nets.mobilenet import MobileNetV1, MobileNetV2
from repvgg_jax.nets.nasnet import NASNet
from repvgg_jax.nets.regnet import RegNet
from repvgg_jax.nets.repvgg import RepVGG
from repvgg_jax.nets.resnet import BottleneckResNet, ResNet
from repvgg_jax.nets.vgg import MAP, VGG
from repvgg_jax.nets.xception import Xception

# A dense kernel on a flattened map: a convolution in timm, [7 * 7 * channels, out] here.
DENSE_AS_CONV_ON_MAP = Change(
    lambda w: w.transpose(2, 3, 1, 0).reshape(-1, len(w)),
    lambda w: w.reshape(MAP, MAP, -1, w.shape[1]).transpose(3, 2, 0, 1),
)


def _vgg(net: VGG) -> Iterator[Entry]:
    yield from torchvision_layout.vgg_convolutions(net)
    for index in range(len(net.hidden)):
        change = DENSE_AS_CONV if index else DENSE_AS_CONV_ON_MAP
        yield from affine_entries(f"pre_logits.fc{index + 1}", f"hidden{index}", change)
    yield from affine_entries("head.fc", "head", DENSE)


def _regnet(net: RegNet) -> Iterator[Entry]:
    parts = {"shortcut": "downsample", "conv0": "conv1", "conv1": "conv2", "conv2": "conv3"}
    for spec in net.plan():
        unit = f"s{spec.stage + 1}.b{spec.index + 1}"
        name = f"{unit}.{parts[spec.role]}" if spec.role else "stem"
        yield from conv_bn_entries(f"{name}.conv", f"{name}.bn", spec.name)
        if spec.se_hidden:
            yield from squeeze_excite_entries(f"{unit}.se.fc1", f"{unit}.se.fc2", spec.name)
    yield from affine_entries("head.fc", "head", DENSE)


def _mobilenet(net: MobileNetV1) -> Iterator[Entry]:
    parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    stem, *rest = net.plan()
    yield from conv_bn_entries("conv_stem", "bn1", stem.name)
    for (stage, index), specs in units_of(rest):
        separable = specs[0].role == "depthwise"  # without an expansion
        for number, spec in enumerate(specs, 1):
            name = f"blocks.{stage}.{index}."
            conv = "conv_pw" if separable and number == 2 else parts.get(spec.role)
            if conv is None:  # the last convolution
                yield from conv_bn_entries("conv_head", "bn2", spec.name)
            else:
                yield from conv_bn_entries(f"{name}{conv}", f"{name}bn{number}", spec.name)
            if spec.se_hidden:
                name = f"{name}se.conv_"
                yield from squeeze_excite_entries(f"{name}reduce", f"{name}expand", spec.name)
    yield from affine_entries("classifier", "head", DENSE)


def _inception_resnet(net: InceptionResNetV2) -> Iterator[Entry]:
    first = {"stem0": "1a", "stem1": "2a", "stem2": "2b", "stem3": "3b", "stem4": "4a"}
    first["last"] = "7b"
    plan = net.plan()
    layers = Counter((spec.stage, spec.index, _branch_of(spec)) for spec in plan)
    for spec in plan:
        unit, branch = _inception_unit(net, spec), _branch_of(spec)
        if spec.role == UP:
            yield from affine_entries(f"{unit}.conv2d", f"{spec.name}/conv_kxk", CONV)
            continue
        if not spec.role:
            name = f"conv2d_{first[spec.name]}"
        elif spec.role == POOLED:
            name = f"{unit}.branch3.1"  # after the pooling
        elif layers[spec.stage, spec.index, branch] == 1:
            name = f"{unit}.{branch}"
        else:
            name = f"{unit}.{branch}.{spec.role.removeprefix(f'{branch}_conv')}"
        yield from conv_bn_entries(f"{name}.conv", f"{name}.bn", spec.name)
    yield from affine_entries("classif", "head", DENSE)


def _branch_of(spec: BlockSpec) -> str:
    return spec.role.split("_")[0]


def _inception_unit(net: InceptionResNetV2, spec: BlockSpec) -> str:
    """Returns the name of the module or residual unit of a convolution."""
    if spec.index == 0:
        return {0: "mixed_5b", 1: "mixed_6a", 2: "mixed_7a"}.get(spec.stage, "")
    if spec.stage == 2 and spec.index == net.depths[2]:
        return "block8"
    return f"{('repeat', 'repeat_1', 'repeat_2')[spec.stage]}.{spec.index - 1}"


def _xception(net: Xception) -> Iterator[Entry]:
    stem0, stem1, *rest = net.plan()
    yield from conv_bn_entries("conv1", "bn1", stem0.name)
    yield from conv_bn_entries("conv2", "bn2", stem1.name)
    for number, ((_, index), specs) in enumerate(units_of(rest), 1):
        if not specs[0].role:  # after the last unit
            yield from _separable_entries(f"conv{index + 3}", f"bn{index + 3}", specs[0].name)
            continue
        if specs[0].role == "shortcut":
            name = f"block{number}.skip"
            yield from conv_bn_entries(name, f"{name}bn", specs.pop(0).name)
        # Each convolution is preceded by a ReLU, except the first one.
        for layer, spec in enumerate(specs):
            at, name = 3 * layer + (number > 1), f"block{number}.rep."
            yield from _separable_entries(f"{name}{at}", f"{name}{at + 1}", spec.name)
    yield from affine_entries("fc", "head", DENSE)


def _separable_entries(conv: str, norm: str, block: str) -> Iterator[Entry]:
    yield Entry(f"{conv}.conv1.weight", f"params/{block}_depthwise/kernel", CONV)
    yield from conv_bn_entries(f"{conv}.pointwise", norm, block)


def _nasnet(net: NASNet) -> Iterator[Entry]:
    if net.cells == "amoebanet_a":
        raise UsageError("timm has no AmoebaNet, so that no weights can be imported or exported")
    pnasnet = net.cells == "pnasnet_5"
    conv = "conv_0" if pnasnet else "conv0"
    yield from conv_bn_entries(f"{conv}.conv", f"{conv}.bn", "stem")
    numbers, reductions = count(), count()
    for cell in net.layout():
        if cell.spec.stage < 2:
            name = f"cell_stem_{cell.spec.stage}"
        elif cell.spec.strides == 2 and not pnasnet:
            name = f"reduction_cell_{next(reductions)}"
        else:
            name = f"cell_{next(numbers)}"
        yield from _cell(cell, name, "conv_prev_1x1." if pnasnet else "")
    yield from affine_entries("last_linear", "head", DENSE)


def _cell(cell: Cell, name: str, halves: str) -> Iterator[Entry]:
    """Yields the entries of a cell; those of two 1x1 convolutions of its source have a prefix."""
    for state, path in enumerate(("conv_1x1", "conv_prev_1x1")):
        specs = cell.inputs(state)
        if len(specs) == 1:
            yield from conv_bn_entries(f"{name}.{path}.conv", f"{name}.{path}.bn", specs[0].name)
            continue
        for number, spec in enumerate(specs, 1):  # they share a BatchNorm in timm
            conv, norm = f"{name}.{halves}path_{number}.conv", f"{name}.{halves}final_path_bn"
            yield from conv_bn_entries(conv, norm, spec.name)
    for role, operand in (operand for pair in cell.pairs() for operand in pair):
        path = f"{name}.{role.replace('pair', 'comb_iter_')}"
        specs = cell.convolutions(role, operand)
        if operand[0] != "separable":
            for spec in specs:
                yield from conv_bn_entries(f"{path}.conv", f"{path}.bn", spec.name)
            continue
        for number, spec in enumerate(specs, 1):
            conv = f"{path}.separable_{number}"
            depthwise = f"params/{spec.name}_depthwise/kernel"
            yield Entry(f"{conv}.depthwise_conv2d.weight", depthwise, CONV)
            norm = f"{path}.bn_sep_{number}"
            yield from conv_bn_entries(f"{conv}.pointwise_conv2d", norm, spec.name)


def _repvgg(net: RepVGG) -> list[Entry]:
    return entries(net, "timm")


FAMILIES: dict[type[Net], Callable[..., Iterator[Entry] | list[Entry]]] = {
    BottleneckResNet: torchvision_layout.FAMILIES[BottleneckResNet],
    EfficientNet: _mobilenet,
    EfficientNetSame: _mobilenet,
    DenseNet: torchvision_layout.FAMILIES[DenseNet],
    InceptionResNetV2: _inception_resnet,
    MobileNetV1: _mobilenet,
    MobileNetV2: _mobilenet,
    NASNet: _nasnet,
    RegNet: _regnet,
    RepVGG: _repvgg,
    ResNet: torchvision_layout.FAMILIES[ResNet],
    VGG: _vgg,
    Xception: _xception,
}

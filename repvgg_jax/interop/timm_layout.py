"""The names of the weights of nets in timm.

Its ResNets and DenseNets have torchvision's names.
"""

from collections.abc import Callable, Iterator
from itertools import groupby

from repvgg_jax.interop import torchvision_layout
from repvgg_jax.interop.pytorch_layout import (
    DENSE,
    DENSE_AS_CONV,
    Change,
    Entry,
    affine_entries,
    conv_bn_entries,
    entries,
)
from repvgg_jax.nets import Net
from repvgg_jax.nets.densenet import DenseNet
from repvgg_jax.nets.mobilenet import MobileNetV1, MobileNetV2
from repvgg_jax.nets.regnet import RegNet
from repvgg_jax.nets.repvgg import RepVGG
from repvgg_jax.nets.resnet import BottleneckResNet, ResNet
from repvgg_jax.nets.vgg import MAP, VGG

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
            yield from affine_entries(f"{unit}.se.fc1", f"{spec.name}_se/squeeze", DENSE_AS_CONV)
            yield from affine_entries(f"{unit}.se.fc2", f"{spec.name}_se/excite", DENSE_AS_CONV)
    yield from affine_entries("head.fc", "head", DENSE)


def _mobilenet(net: MobileNetV1) -> Iterator[Entry]:
    parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    stem, *rest = net.plan()
    yield from conv_bn_entries("conv_stem", "bn1", stem.name)
    for (stage, index), unit in groupby(rest, key=lambda spec: (spec.stage, spec.index)):
        specs = list(unit)
        separable = specs[0].role == "depthwise"  # without an expansion
        for number, spec in enumerate(specs, 1):
            name = f"blocks.{stage}.{index}."
            conv = "conv_pw" if separable and number == 2 else parts.get(spec.role)
            if conv is None:  # the last convolution
                yield from conv_bn_entries("conv_head", "bn2", spec.name)
            else:
                yield from conv_bn_entries(f"{name}{conv}", f"{name}bn{number}", spec.name)
    yield from affine_entries("classifier", "head", DENSE)


def _repvgg(net: RepVGG) -> list[Entry]:
    return entries(net, "timm")


FAMILIES: dict[type[Net], Callable[..., Iterator[Entry] | list[Entry]]] = {
    BottleneckResNet: torchvision_layout.FAMILIES[BottleneckResNet],
    DenseNet: torchvision_layout.FAMILIES[DenseNet],
    MobileNetV1: _mobilenet,
    MobileNetV2: _mobilenet,
    RegNet: _regnet,
    RepVGG: _repvgg,
    ResNet: torchvision_layout.FAMILIES[ResNet],
    VGG: _vgg,
}

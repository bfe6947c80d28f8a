"""The names of the weights of comparison nets in torchvision."""

from collections.abc import Callable, Iterator
from itertools import count

from repvgg_jax.errors import UsageError
from repvgg_jax.interop.pytorch_layout import (
    CONV,
    DENSE,
    Change,
    Entry,
    affine_entries,
    batch_norm_entries,
    conv_bn_entries,
    squeeze_excite_entries,
)
from repvgg_jax.nets import Net, units_of
from repvgg_jax.nets.densenet import DenseNet
from repvgg_jax.nets.efficientnet import EfficientNet
from repvgg_jax.nets.googlenet import MAP as AUXILIARY_MAP
from repvgg_jax.nets.googlenet import GoogLeNet
from repvgg_jax.nets.mobilenet import MobileNetV2
from repvgg_jax.nets.regnet import RegNet
from repvgg_jax.nets.resnet import BottleneckResNet, ResNet
from repvgg_jax.nets.shufflenet import ShuffleNetV2
from repvgg_jax.nets.vgg import MAP, VGG


def dense_on_map(n: int) -> Change:
    """Returns the conversion of a dense kernel that reads a flattened map of n x n pixels.

    It is [out, channels * n * n] in PyTorch, and [n * n * channels, out] here.
    """
    return Change(
        lambda w: w.reshape(len(w), -1, n, n).transpose(2, 3, 1, 0).reshape(-1, len(w)),
        lambda w: w.reshape(n, n, -1, w.shape[1]).transpose(3, 2, 0, 1).reshape(w.shape[1], -1),
    )


def _resnet(net: ResNet) -> Iterator[Entry]:
    if isinstance(net, BottleneckResNet) and net.strided != 1:
        raise UsageError(
            "PyTorch's ResNets have their stride in the 3x3 convolution (v1.5): import the weights "
            "into the model without _v1"
        )
    for spec in net.plan():
        unit = f"layer{spec.stage + 1}.{spec.index}."
        if spec.role == "shortcut":
            conv, norm = f"{unit}downsample.0", f"{unit}downsample.1"
        else:
            number = int(spec.role.removeprefix("conv")) + 1 if spec.role else 1
            unit = unit if spec.role else ""  # the stem
            conv, norm = f"{unit}conv{number}", f"{unit}bn{number}"
        yield from conv_bn_entries(conv, norm, spec.name)
    yield from affine_entries("fc", "head", DENSE)


def _regnet(net: RegNet) -> Iterator[Entry]:
    for spec in net.plan():
        stage = f"block{spec.stage + 1}"
        unit = f"trunk_output.{stage}.{stage}-{spec.index}"
        part = {"shortcut": "proj", "conv0": "f.a", "conv1": "f.b", "conv2": "f.c"}.get(spec.role)
        name = f"{unit}.{part}" if part else "stem"
        yield from conv_bn_entries(f"{name}.0", f"{name}.1", spec.name)
        if spec.se_hidden:
            name = f"{unit}.f.se.fc"
            yield from squeeze_excite_entries(f"{name}1", f"{name}2", spec.name)
    yield from affine_entries("fc", "head", DENSE)


def vgg_convolutions(net: VGG) -> Iterator[Entry]:
    """Yields the entries of VGG's convolutions, which are the same in timm."""
    layer, stage = 0, 0
    for spec in net.plan():
        layer += spec.stage - stage  # the pooling between stages
        stage = spec.stage
        yield from affine_entries(f"features.{layer}", f"{spec.name}/conv_kxk", CONV)
        if net.block == "plain":
            yield from batch_norm_entries(f"features.{layer + 1}", f"{spec.name}/bn_kxk")
        layer += 3 if net.block == "plain" else 2  # with the ReLU


def _vgg(net: VGG) -> Iterator[Entry]:
    yield from vgg_convolutions(net)
    for index in range(len(net.hidden)):
        change = DENSE if index else dense_on_map(MAP)
        yield from affine_entries(f"classifier.{3 * index}", f"hidden{index}", change)
    yield from affine_entries(f"classifier.{3 * len(net.hidden)}", "head", DENSE)


def _mobilenet_v2(net: MobileNetV2) -> Iterator[Entry]:
    unit, layers = 0, 0
    for spec in net.plan():
        if spec.role in ("", "expand") or (spec.role == "depthwise" and not spec.stage):
            layers = 0
            unit += spec.name != "stem"
        name = f"features.{unit}.conv" if spec.role else f"features.{unit}"
        activated = spec.role != "project"
        conv = f"{name}.{layers}.0" if activated and spec.role else f"{name}.{layers}"
        norm = f"{name}.{layers}.1" if activated and spec.role else f"{name}.{layers + 1}"
        yield from conv_bn_entries(conv, norm, spec.name)
        layers += 1
    yield from affine_entries("classifier.1", "head", DENSE)


def _efficientnet(net: EfficientNet) -> Iterator[Entry]:
    stem, *rest, last = net.plan()
    yield from conv_bn_entries("features.0.0", "features.0.1", stem.name)
    for (stage, index), unit in units_of(rest):
        names = (f"features.{stage + 1}.{index}.block.{layer}" for layer in count())
        for spec in unit:
            name = next(names)
            yield from conv_bn_entries(f"{name}.0", f"{name}.1", spec.name)
            if spec.se_hidden:
                name = next(names)
                yield from squeeze_excite_entries(f"{name}.fc1", f"{name}.fc2", spec.name)
    name = f"features.{len(net.depths) + 1}"
    yield from conv_bn_entries(f"{name}.0", f"{name}.1", last.name)
    yield from affine_entries("classifier.1", "head", DENSE)


def _shufflenet_v2(net: ShuffleNetV2) -> Iterator[Entry]:
    layers = {
        "side_depthwise": ("branch1", 0),
        "side_conv": ("branch1", 2),
        "conv0": ("branch2", 0),
        "depthwise": ("branch2", 3),
        "conv1": ("branch2", 5),
    }
    stem, *rest, last = net.plan()
    yield from conv_bn_entries("conv1.0", "conv1.1", stem.name)
    for spec in rest:
        branch, layer = layers[spec.role]
        name = f"stage{spec.stage + 2}.{spec.index}.{branch}"
        yield from conv_bn_entries(f"{name}.{layer}", f"{name}.{layer + 1}", spec.name)
    yield from conv_bn_entries("conv5.0", "conv5.1", last.name)
    yield from affine_entries("fc", "head", DENSE)


def _densenet(net: DenseNet) -> Iterator[Entry]:
    stem, *layers = net.plan()
    yield from conv_bn_entries("features.conv0", "features.norm0", stem.name)
    for spec in layers:
        name = f"features.denseblock{spec.stage + 1}.denselayer{spec.index + 1}"
        yield from batch_norm_entries(f"{name}.norm1", f"{spec.name}_bn")
        yield from conv_bn_entries(f"{name}.conv1", f"{name}.norm2", spec.name)
        yield Entry(f"{name}.conv2.weight", f"params/{spec.name}_conv/kernel", CONV)
    for stage in range(len(net.depths) - 1):
        name, path = f"features.transition{stage + 1}", f"stage{stage}_transition"
        yield from batch_norm_entries(f"{name}.norm", f"{path}_bn")
        yield Entry(f"{name}.conv.weight", f"params/{path}_conv/kernel", CONV)
    yield from batch_norm_entries(f"features.norm{len(net.depths) + 1}", "last_bn")
    yield from affine_entries("classifier", "head", DENSE)


def _googlenet(net: GoogLeNet) -> Iterator[Entry]:
    if net.lrn:
        raise UsageError(
            "torchvision's GoogLeNet has BatchNorms, and 3x3 convolutions in the places of 5x5: "
            "import the weights into the model googlenet_bn"
        )
    branches = {"1x1": "1", "3x3_reduce": "2.0", "3x3": "2.1"}
    branches |= {"5x5_reduce": "3.0", "5x5": "3.1", "pool_proj": "4.1"}
    first = {"stem": "conv1", "second_reduce": "conv2", "second": "conv3"}
    for spec in net.plan():
        module = f"inception{spec.stage + 3}{'abcde'[spec.index]}"
        name = f"{module}.branch{branches[spec.role]}" if spec.role else first[spec.name]
        yield from conv_bn_entries(f"{name}.conv", f"{name}.bn", spec.name)
    for number, head in enumerate(net.auxiliary_heads().values(), start=1):
        name = f"aux{number}"
        yield from conv_bn_entries(f"{name}.conv.conv", f"{name}.conv.bn", f"{head}/conv")
        yield from affine_entries(f"{name}.fc1", f"{head}/hidden", dense_on_map(AUXILIARY_MAP))
        yield from affine_entries(f"{name}.fc2", f"{head}/fc", DENSE)
    yield from affine_entries("fc", "head", DENSE)


FAMILIES: dict[type[Net], Callable[..., Iterator[Entry]]] = {
    ResNet: _resnet,
    BottleneckResNet: _resnet,
    RegNet: _regnet,
    VGG: _vgg,
    DenseNet: _densenet,
    EfficientNet: _efficientnet,
    GoogLeNet: _googlenet,
    MobileNetV2: _mobilenet_v2,
    ShuffleNetV2: _shufflenet_v2,
}

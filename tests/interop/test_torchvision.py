"""Comparison nets compute what torchvision's do from the same weights."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import repvgg_jax as rj
from experiments.reference.rounding import agree, errors
from repvgg_jax.interop.pytorch import from_torch
from repvgg_jax.runtime.compilation import jit_once

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from experiments.reference.torch_models import counterpart, random_images, randomize  # noqa: E402
from tests.support.torch_weights import assert_same_logits  # noqa: E402

# (name, side of the images); the nets of a family share their code. Maps have 2x2 pixels or more:
# in smaller ones, only the center of a 3x3 kernel counts.
NETS = [
    ("resnet18", 64),
    ("vgg11_bn", 32),
    pytest.param("mobilenetv2_100", 64, marks=pytest.mark.slow),
    pytest.param("regnetx_400mf", 64, marks=pytest.mark.slow),
    pytest.param("regnety_400mf", 64, marks=pytest.mark.slow),
    pytest.param("densenet121", 64, marks=pytest.mark.slow),
    pytest.param("densenet161", 64, marks=pytest.mark.slow),
    pytest.param("vgg16", 224, marks=pytest.mark.slow),
    *(
        pytest.param(name, 64, marks=pytest.mark.slow)
        for pattern in ("efficientnet*", "shufflenetv2*", "*res*", "vgg*")
        for name in rj.list_models(pattern)
        if name not in ("resnet18", "residual_reorg_b0", "resnext101_32x4d")
        and not name.endswith(("_v1", "_v2"))
    ),
]
HIDDEN = 16  # outputs of VGG's hidden layers, which would be most of its time


def theirs(name):
    """Returns a net of torchvision with ten classes, and our overrides for it."""
    module = counterpart(name, "torchvision", num_classes=10)
    if not name.startswith("vgg"):
        return module, {}
    layers = list(module.classifier)
    for index, (inputs, outputs) in enumerate(((512 * 49, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10))):
        layers[3 * index] = torch.nn.Linear(inputs, outputs)
    module.classifier = torch.nn.Sequential(*layers)
    return module, {"hidden": (HIDDEN, HIDDEN)}


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("resnet50_v1", {}, "without _v1"),
        ("googlenet", {}, "into the model googlenet_bn"),
        ("resnet18", {"block": "acb"}, "has no counterpart in torchvision"),
        ("resnet18", {"use_bias": True}, "use the model's own block and block options"),
        ("vgg11", {"block": "plain"}, "use the model's own block and block options"),
    ],
)
def test_nets_that_torchvision_does_not_have_are_refused(name, overrides, says):
    with pytest.raises(rj.UsageError, match=says):
        from_torch(rj.create(name, **overrides), {"fc.weight": np.zeros((1, 1), np.float32)})


def small(models, name):
    """Returns a net of torchvision with few layers, and our overrides for it."""
    if name.startswith("shufflenetv2"):
        module = models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 32], num_classes=10)
        return module, {"depths": (1, 2, 1), "widths": (16, 32, 64), "width": 8, "last": 32}
    if name.startswith("mobilenetv2"):
        module = models.MobileNetV2(10, inverted_residual_setting=[(1, 16, 1, 1), (6, 24, 2, 2)])
        return module, {"depths": (1, 2), "widths": (16, 24), "strides": (1, 2)}
    stages = [(1, 3, 1, 32, 16, 1), (6, 5, 2, 16, 24, 2)]
    module = models.efficientnet.EfficientNet(
        [models.efficientnet.MBConvConfig(*stage) for stage in stages],
        dropout=0.2,
        num_classes=10,
        last_channel=1280,
    )
    shape = {"depths": (1, 2), "widths": (16, 24), "strides": (1, 2), "kernel_sizes": (3, 5)}
    return module, shape


@pytest.mark.medium
@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv2_100", "shufflenetv2_100"])
def test_small_nets_compute_what_torchvisions_do(name, torchvision):
    assert_same_forms(name, *small(torchvision.models, name), 32)


@pytest.mark.medium
def test_wrong_weights_are_seen(torchvision):
    module, overrides = small(torchvision.models, "shufflenetv2_100")
    images = random_images(2, 32)
    net = rj.create("shufflenetv2_100", num_classes=10, **overrides)
    variables = from_torch(net, randomize(module, images).state_dict())
    flat = flatten_dict(variables, sep="/")
    kernel, variance = "params/stem/conv_kxk/kernel", "batch_stats/last/bn_kxk/var"
    first, second = "stage1_block1_conv0", "stage1_block1_conv1"
    added = 1e-3 - net.bn_epsilon  # what another epsilon adds to all variances
    wrong = {
        "transposed kernel": flat | {kernel: flat[kernel].swapaxes(0, 1)},
        "no running variance": flat | {variance: np.ones_like(flat[variance])},
        "epsilon": {path: leaf + added * path.endswith("/var") for path, leaf in flat.items()},
    }
    forward = jit_once(net.apply)
    trees = {name: unflatten_dict(leaves, sep="/") for name, leaves in wrong.items()}
    trees["swapped blocks"] = {
        collection: blocks | {first: blocks[second], second: blocks[first]}
        for collection, blocks in variables.items()
    }
    logits = (np.asarray(forward(tree, images)) for tree in (variables, *trees.values()))
    there, right, *others = errors(module, images, *logits)
    assert agree(there, right)
    assert not agree(there, right, np.nan)
    for name, error in zip(trees, others, strict=True):
        assert not agree(there, error), name


@pytest.mark.medium
@pytest.mark.parametrize(("name", "size"), NETS)
def test_logits_equal_torchvisions_in_both_forms(name, size, torchvision):
    assert_same_forms(name, *theirs(name), size)


def assert_same_forms(name, module, overrides, size):
    images = random_images(8, size)  # maps of 2x2 pixels of only two have noisy statistics
    randomize(module, images)
    net = rj.create(name, num_classes=10, **overrides)
    variables = from_torch(net, module.state_dict())
    assert_same_logits(module, images[:2], (net, variables), rj.fuse(net, variables))

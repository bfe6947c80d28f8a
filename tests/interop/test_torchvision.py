"""Comparison nets compute what torchvision's do from the same weights."""

import re

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from tests.support.torch_weights import randomize  # noqa: E402

# (name, side of the images); the nets of a family share their code.
NETS = [
    ("resnet18", 64),
    ("vgg11_bn", 32),
    ("mobilenetv2_100", 32),
    pytest.param("regnetx_400mf", 64, marks=pytest.mark.slow),
    pytest.param("regnety_400mf", 64, marks=pytest.mark.slow),
    pytest.param("densenet121", 64, marks=pytest.mark.slow),
    pytest.param("densenet161", 64, marks=pytest.mark.slow),
    pytest.param("vgg16", 224, marks=pytest.mark.slow),
    *(
        pytest.param(name, 32, marks=pytest.mark.slow)
        for name in rj.list_models("efficientnet*") + rj.list_models("shufflenetv2*")
    ),
    *(
        pytest.param(name, 64, marks=pytest.mark.slow)
        for name in rj.list_models("*res*") + rj.list_models("vgg*")
        if name not in ("resnet18", "residual_reorg_b0", "resnext101_32x4d")
        and not name.endswith(("_v1", "_v2"))
    ),
]
HIDDEN = 16  # outputs of VGG's hidden layers, which would be most of its time


def theirs(torchvision, name):
    """Returns a random net of torchvision with ten classes, and our overrides for it."""
    name = {"mobilenetv2_100": "mobilenet_v2"}.get(name, name.replace("regnet", "regnet_"))
    name = re.sub(r"shufflenetv2_(\d)(\d)0", r"shufflenet_v2_x\1_\2", name)
    module = getattr(torchvision.models, name)(num_classes=10)
    if not name.startswith("vgg"):
        return randomize(module), {}
    layers = list(module.classifier)
    for index, (inputs, outputs) in enumerate(((512 * 49, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10))):
        layers[3 * index] = torch.nn.Linear(inputs, outputs)
    module.classifier = torch.nn.Sequential(*layers)
    return randomize(module), {"hidden": (HIDDEN, HIDDEN)}


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


def small(torchvision, name):
    """Returns a random net of torchvision with few layers, and our overrides for it."""
    models = torchvision.models
    if name.startswith("shufflenetv2"):
        module = models.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 32], num_classes=10)
        shape = {"depths": (1, 2, 1), "widths": (16, 32, 64), "width": 8, "last": 32}
        return randomize(module), shape
    stages = [(1, 3, 1, 32, 16, 1), (6, 5, 2, 16, 24, 2)]
    module = models.efficientnet.EfficientNet(
        [models.efficientnet.MBConvConfig(*stage) for stage in stages],
        dropout=0.2,
        num_classes=10,
        last_channel=1280,
    )
    shape = {"depths": (1, 2), "widths": (16, 24), "strides": (1, 2), "kernel_sizes": (3, 5)}
    return randomize(module), shape


@pytest.mark.medium
@pytest.mark.parametrize("name", ["efficientnet_b0", "shufflenetv2_100"])
def test_small_nets_compute_what_torchvisions_do(name, torchvision):
    assert_same_logits(name, *small(torchvision, name), 32)


@pytest.mark.medium
@pytest.mark.parametrize(("name", "size"), NETS)
def test_logits_equal_torchvisions_in_both_forms(name, size, torchvision):
    assert_same_logits(name, *theirs(torchvision, name), size)


def assert_same_logits(name, module, overrides, size):
    net = rj.create(name, num_classes=10, **overrides)
    variables = from_torch(net, module.state_dict())
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    fused = rj.fuse(net, variables)
    for form in ((net, variables), fused):
        logits = jax.jit(form[0].apply, static_argnames="train")(form[1], images, train=False)
        error = np.abs(logits - expected).max() / np.abs(expected).max()
        assert error < 1e-5

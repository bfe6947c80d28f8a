"""Comparison nets compute what timm's do from the same weights, with timm's names."""

import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from experiments.reference.torch_models import counterpart, random_images, randomize  # noqa: E402
from tests.support.torch_weights import (  # noqa: E402
    assert_exported,
    assert_same_logits,
    noise_for,
    refusal,
)

HIDDEN = 16  # outputs of VGG's hidden layers, which would be most of its time
NETS = (
    "densenet121",
    "efficientnet_b0",
    "mobilenetv1_025",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "nasnetalarge",
    "pnasnet5large",
    "regnetx_400mf",
    "regnety_400mf",
    "resnet50",
    *rj.list_models("tf_efficientnet*"),
    "vgg11",
    "vgg11_bn",
)
QUICK = ("mobilenetv1_025",)


def theirs(timm, name):
    """Returns a net of timm with ten classes, and our overrides for it."""
    module = counterpart(name, "timm", num_classes=10)
    if not name.startswith("vgg"):
        return module, {}
    module.pre_logits = timm.models.vgg.ConvMlp(512, HIDDEN)
    module.head.fc = torch.nn.Linear(HIDDEN, 10)
    return module, {"hidden": (HIDDEN, HIDDEN)}


@pytest.mark.medium
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETS]
)
def test_the_fused_form_computes_what_timms_net_does(name, timm):
    module, options = theirs(timm, name)
    # Maps have 2x2 pixels or more: in smaller ones, only the center of a 3x3 kernel counts.
    images = random_images(8, 64)  # maps of 2x2 pixels of only two have noisy statistics
    randomize(module, images)
    net = rj.create(name, num_classes=10, **options)
    assert_exported(net, module, "timm")
    fused = rj.fuse(net, from_torch(net, module.state_dict()))
    assert_same_logits(module, images[:2], fused)


@pytest.mark.medium
@pytest.mark.parametrize(
    "name", ["nasnetalarge", pytest.param("pnasnet5large", marks=pytest.mark.slow)]
)
def test_cells_compute_what_timms_do(name, timm):
    from tests.support.torch_cells import SMALL

    make, fields = SMALL[name]
    images = random_images(2, 33)[:, :, :28]
    module = randomize(make(), images)
    net = rj.create(name, num_classes=10, **fields)
    variables = from_torch(net, module.state_dict())
    assert_same_logits(module, images, (net, variables), rj.fuse(net, variables))


def test_layouts_are_chosen_by_the_net():
    net = rj.create("mobilenetv1_025", num_classes=3)
    variables = noise_for(net)
    assert "conv_stem.weight" in to_torch(net, variables)  # torchvision has none
    other = net.clone(strides=(2, *net.strides[1:]))
    assert "could compute something else" in refusal(to_torch, other, variables)
    assert "choose from official, torchvision, timm" in refusal(to_torch, net, variables, "keras")
    assert "use layout='timm'" in refusal(to_torch, net, variables, "torchvision")
    assert "cannot be converted" in refusal(to_torch, rj.create("residual_reorg_b0"), variables)


@pytest.mark.parametrize(
    ("name", "fields", "missing"),
    [
        ("repvgg_a0", {"depths": (1,) * 5, "widths": (8,) * 5}, "stage0.rbr_dense.conv.weight"),
        ("resnet18", {"depths": (1,), "widths": (8,), "strides": (1,)}, "conv1.weight"),
        ("vgg11", {"depths": (1,), "widths": (8,), "strides": (2,)}, "features.0.weight"),
    ],
)
def test_weights_of_another_family_are_refused_with_both_leftovers(name, fields, missing):
    names = ("conv_stem.weight", "bn1.bias", "classifier.bias")
    source = {key: np.zeros(8, np.float32) for key in names}
    message = refusal(from_torch, rj.create(name, **fields), source)
    assert "the weights are not those of this net" in message
    assert f"missing: {missing}, " in message
    assert "unexpected: conv_stem.weight" in message

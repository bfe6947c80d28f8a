"""Comparison nets compute what timm's do from the same weights, with timm's names."""

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.runtime.compilation import jit_once

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from tests.support.torch_weights import noise_for, randomize, refusal  # noqa: E402

HIDDEN = 16  # outputs of VGG's hidden layers, which would be most of its time
# (name here, name in timm, side of the images); names of the families differ from torchvision's.
NETS_OF_TIMM = [
    ("mobilenetv1_100", "mobilenetv1_100", 32),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("densenet121", "densenet121", 64),
            ("efficientnet_b0", "efficientnet_b0", 32),
            *((name, name, 32) for name in rj.list_models("tf_efficientnet*")),
            ("nasnetalarge", "nasnetalarge", 64),
            ("pnasnet5large", "pnasnet5large", 64),
            ("mobilenetv2_100", "mobilenetv2_100", 32),
            ("regnetx_400mf", "regnetx_004_tv", 64),
            ("regnety_400mf", "regnety_004", 64),
            ("resnet50", "resnet50", 64),
            ("vgg11", "vgg11", 32),
            ("vgg11_bn", "vgg11_bn", 32),
        )
    ),
]


def theirs(timm, name):
    """Returns a random net of timm with ten classes, and our overrides for it."""
    module = timm.create_model(name, num_classes=10)
    if not name.startswith("vgg"):
        return randomize(module), {}
    module.pre_logits = timm.models.vgg.ConvMlp(512, HIDDEN)
    module.head.fc = torch.nn.Linear(HIDDEN, 10)
    return randomize(module), {"hidden": (HIDDEN, HIDDEN)}


@pytest.mark.medium
@pytest.mark.parametrize(("name", "in_timm", "size"), NETS_OF_TIMM)
def test_the_fused_form_computes_what_timms_net_does(name, in_timm, size, timm):
    module, options = theirs(timm, in_timm)
    net = rj.create(name, num_classes=10, **options)
    variables = from_torch(net, module.state_dict())
    exported = to_torch(net, variables, "timm")
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(exported.pop(key), value.numpy())
    assert not exported
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    fused_net, fused = rj.fuse(net, variables)
    logits = jax.jit(fused_net.apply, static_argnames="train")(fused, images, train=False)
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.medium
@pytest.mark.parametrize(
    "name", ["nasnetalarge", pytest.param("pnasnet5large", marks=pytest.mark.slow)]
)
def test_cells_compute_what_timms_do(name, timm):
    from tests.support.torch_cells import SMALL

    make, fields = SMALL[name]
    module = randomize(make())
    net = rj.create(name, num_classes=10, **fields)
    variables = from_torch(net, module.state_dict())
    images = np.random.default_rng(0).normal(size=(2, 33, 28, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    for form, weights in ((net, variables), rj.fuse(net, variables)):
        logits = jit_once(form.apply)(weights, images)
        assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5


def test_layouts_are_chosen_by_the_net():
    net = rj.create("mobilenetv1_025", num_classes=3)
    variables = noise_for(net)
    assert "conv_stem.weight" in to_torch(net, variables)  # torchvision has none
    other = net.clone(strides=(2, *net.strides[1:]))
    assert "could compute another function" in refusal(to_torch, other, variables)
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

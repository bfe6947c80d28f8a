"""GoogLeNet, Inception-ResNet-v2 and Xception compute what torchvision's and timm's do."""

from functools import partial

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")


def scaled(module):
    """Draws all weights and statistics such that the features keep their size.

    With PyTorch's initialization and random statistics, each layer shrinks what depends on the
    image, and the logits of deep nets are those of their biases.
    """
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.5, generator=generator)
            if name.endswith("weight"):
                value += 0.5 * value.sign()
    return module.eval()


def random_images(size):
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


def check_logits(pair, module, size):
    """Checks the logits of a net and its variables."""
    net, variables = pair
    images = random_images(size)
    with torch.no_grad():
        expected = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()
    logits = jax.jit(partial(net.apply, train=False))(variables, images)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def check_export(net, module, layout):
    exported = to_torch(net, from_torch(net, module.state_dict()), layout)
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(exported.pop(key), value.numpy())
    assert not exported


@pytest.fixture
def googlenet(torchvision):
    """Returns torchvision's net, without dropout, which its training form would need a key for."""
    module = torchvision.models.googlenet(num_classes=10, init_weights=False, dropout_aux=0)
    module.dropout.p = 0
    return scaled(module)


@pytest.mark.medium
def test_googlenet_computes_what_torchvisions_does(googlenet):
    # The sides of the maps are both even and odd: 75, 38, 19, 9, 4, 2.
    net = rj.create("googlenet_bn", num_classes=10, auxiliary=True)
    pair = net, from_torch(net, googlenet.state_dict())
    check_logits(pair, googlenet, 75)
    check_logits(rj.fuse(*pair), googlenet, 75)


@pytest.mark.slow
def test_auxiliary_heads_of_googlenet_are_torchvisions(googlenet):
    fields = dict(dropout=0.0, auxiliary_dropout=0.0, auxiliary=True)
    net = rj.create("googlenet_bn", num_classes=10, **fields)
    variables, images = from_torch(net, googlenet.state_dict()), random_images(75)
    check_export(rj.create("googlenet_bn", num_classes=10, auxiliary=True), googlenet, None)
    with torch.no_grad():
        expected = googlenet.train()(torch.from_numpy(images).permute(0, 3, 1, 2))
    apply = partial(net.apply, train=True, mutable=["batch_stats", "auxiliary"])
    logits, updated = jax.jit(apply)(variables, images)
    names = (f"aux_stage1_block{index}_logits" for index in (3, 0))
    ours = [logits, *(updated["auxiliary"][name][0] for name in names)]
    for found, like in zip(ours, expected, strict=True):
        # The last statistics are of eight values each, which enlarges rounding errors.
        assert np.abs(found - like.numpy()).max() < 1e-3 * np.abs(like.numpy()).max()


@pytest.mark.medium
def test_xception_computes_what_timms_does(timm):
    module = scaled(timm.create_model("legacy_xception", num_classes=10))
    net = rj.create("xception", num_classes=10)
    check_export(net, module, "timm")
    check_logits(rj.fuse(net, from_torch(net, module.state_dict())), module, 64)


@pytest.mark.medium
def test_a_short_inception_resnet_computes_what_timms_does(timm):
    module = timm.create_model("inception_resnet_v2", num_classes=10)
    module.repeat, module.repeat_1 = module.repeat[:1], module.repeat_1[:1]
    module.repeat_2 = torch.nn.Sequential()
    module = scaled(module)
    net = rj.create("inception_resnet_v2", num_classes=10, depths=(1, 1, 1))
    check_logits(rj.fuse(net, from_torch(net, module.state_dict())), module, 75)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "there", "size"),
    [("inception_resnet_v2", "inception_resnet_v2", 139), ("xception", "legacy_xception", 99)],
)
def test_both_forms_compute_what_timms_net_does(name, there, size, timm):
    module = scaled(timm.create_model(there, num_classes=10))
    net = rj.create(name, num_classes=10)
    check_export(net, module, "timm")
    pair = net, from_torch(net, module.state_dict())
    check_logits(pair, module, size)
    check_logits(rj.fuse(*pair), module, size)

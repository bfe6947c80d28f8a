"""GoogLeNet, Inception-ResNet-v2 and Xception compute what torchvision's and timm's do."""

from functools import partial

import jax
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.interop.pytorch import from_torch

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from experiments.reference.torch_models import random_images, randomize  # noqa: E402
from tests.support.torch_weights import assert_exported, assert_same_logits  # noqa: E402

IMAGES = random_images(2, 75)  # GoogLeNet's maps have even and odd sides: 75, 38, 19, 9, 4, 2


@pytest.fixture
def googlenet(torchvision):
    """Returns torchvision's net, without dropout, which its training form would need a key for."""
    module = torchvision.models.googlenet(num_classes=10, init_weights=False, dropout_aux=0)
    module.dropout.p = 0
    return randomize(module, IMAGES)


@pytest.mark.medium
def test_googlenet_computes_what_torchvisions_does(googlenet):
    net = rj.create("googlenet_bn", num_classes=10, auxiliary=True)
    variables = from_torch(net, googlenet.state_dict())
    assert_same_logits(googlenet, IMAGES, (net, variables), rj.fuse(net, variables))


@pytest.mark.slow
def test_auxiliary_heads_of_googlenet_are_torchvisions(googlenet):
    fields = dict(dropout=0.0, auxiliary_dropout=0.0, auxiliary=True)
    net = rj.create("googlenet_bn", num_classes=10, **fields)
    variables = from_torch(net, googlenet.state_dict())
    assert_exported(rj.create("googlenet_bn", num_classes=10, auxiliary=True), googlenet, None)
    with torch.no_grad():
        expected = googlenet.train()(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    apply = partial(net.apply, train=True, mutable=["batch_stats", "auxiliary"])
    logits, updated = jax.jit(apply)(variables, IMAGES)
    names = (f"aux_stage1_block{index}_logits" for index in (3, 0))
    ours = [logits, *(updated["auxiliary"][name][0] for name in names)]
    for found, like in zip(ours, expected, strict=True):
        # The last statistics are of eight values each, which enlarges rounding errors.
        assert np.abs(found - like.numpy()).max() < 1e-3 * np.abs(like.numpy()).max()


@pytest.mark.medium
def test_a_short_xception_computes_what_timms_does(timm):
    module = timm.create_model("legacy_xception", num_classes=10)
    assert_exported(rj.create("xception", num_classes=10), module, "timm")
    module.block5 = module.block12
    for index in range(6, 13):
        setattr(module, f"block{index}", torch.nn.Identity())
    images = random_images(2, 64)
    randomize(module, images)
    net = rj.create("xception", num_classes=10, depths=(1, 1, 2, 1))
    fused = rj.fuse(net, from_torch(net, module.state_dict()))
    assert_same_logits(module, images, fused)


@pytest.mark.medium
def test_a_short_inception_resnet_computes_what_timms_does(timm):
    module = timm.create_model("inception_resnet_v2", num_classes=10)
    module.repeat, module.repeat_1 = module.repeat[:1], module.repeat_1[:1]
    module.repeat_2 = torch.nn.Sequential()
    randomize(module, IMAGES)
    net = rj.create("inception_resnet_v2", num_classes=10, depths=(1, 1, 1))
    fused = rj.fuse(net, from_torch(net, module.state_dict()))
    assert_same_logits(module, IMAGES, fused)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "there", "size"),
    [("inception_resnet_v2", "inception_resnet_v2", 139), ("xception", "legacy_xception", 99)],
)
def test_both_forms_compute_what_timms_net_does(name, there, size, timm):
    images = random_images(2, size)
    module = randomize(timm.create_model(there, num_classes=10), images)
    net = rj.create(name, num_classes=10)
    assert_exported(net, module, "timm")
    variables = from_torch(net, module.state_dict())
    assert_same_logits(module, images, (net, variables), rj.fuse(net, variables))

"""PyTorch modules made from nets: they compute the same, and import PyTorch only."""

import importlib
import sys

import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.config.build import make_net
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.torch_file import export_torch
from repvgg_jax.nets import smallest_side
from tests.support.commands import python
from tests.support.variables import random_variables

torch = pytest.importorskip("torch", reason="PyTorch is not installed: no other side to compare")

# Nets of one family each, whose other members have the same layers.
FAMILIES = ["densenet121", "diracnet18", "googlenet", "googlenet_bn", "inception_resnet_v2"]
FAMILIES += [
    "deep_plain",
    "mobilenetv2_050",
    "mobileone_s0",
    "shufflenetv2_050",
    "nasnetamobile",
    "regnety_400mf",
    "repvgg_d2se",
    "residual_reorg_b0",
]
FAMILIES += ["shufflenetv1_050_g3", "tf_efficientnet_b0", "vgg11", "vgg11_bn", "xception"]

LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, torch
from model import METADATA, load
images = torch.from_numpy(numpy.load(sys.argv[1] + "/images.npy")).permute(0, 3, 1, 2)
numpy.save(sys.argv[1] + "/logits.npy", load()(images).detach().numpy())
assert not any(name.startswith(("repvgg_jax", "jax", "flax")) for name in sys.modules)
print(METADATA["names"])
"""


def exported(net, path, size, **options):
    """Returns the relative error of a net's module, with random variables."""
    variables = random_variables(net, 0)
    return export_torch(net, variables, path, metadata=Metadata(image_size=size), **options)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["quickstart", "cifar10"])
def test_the_nets_that_a_newcomer_trains(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    net = make_net(config).clone(block="fused")
    error = exported(net, tmp_path / "model.pth", config.data.image_size).export_error
    assert error < 1e-5
    code = (tmp_path / "model.py").read_text()
    assert code.count("nn.Conv2d(") == len(net.plan())
    assert code.count("x = F.relu(self.stage") == len(net.plan())


@pytest.mark.medium
def test_a_narrowed_comparison_net(tmp_path):
    fields = {"num_classes": 5, "depths": (1, 1), "widths": (8, 16), "strides": (1, 2)}
    net = rj.create("resnet18", **fields).clone(block="fused")
    assert exported(net, tmp_path / "model.pth", 32).export_error < 1e-5


@pytest.mark.medium
def test_an_earlier_file_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    net = rj.create("repvgg_a0", num_classes=2, depths=(1,), widths=(4,), strides=(2,))
    for _ in range(2):
        exported(net.clone(block="fused"), tmp_path / "model.pth", 8)
    assert {file.name for file in tmp_path.iterdir()} == {"model.pth", "model.py"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_one_net_of_each_family(name, tmp_path):
    net = rj.create(name, num_classes=5).clone(block="fused")
    size = max(smallest_side(net), 32)
    assert exported(net, tmp_path / "model.pth", size).export_error < 1e-4


@pytest.mark.system
def test_the_module_imports_torch_only(tmp_path):
    net = rj.create("repvgg_a0", num_classes=2, depths=(1, 1), widths=(4, 8), strides=(2, 1))
    variables, path = random_variables(net, 0), tmp_path / "model.pth"
    metadata = Metadata(image_size=8, names=('"cat"', "dog"), model='of """quotes"""\\')
    export_torch(net, variables, path, metadata=metadata, allow_train_form=True)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    printed = python("-c", LOAD, tmp_path)
    assert printed.strip() == metadata.to_strings()["names"]
    expected = net.apply(variables, images, train=False)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_module_of_ones_own_is_not_replaced(tmp_path):
    net = rj.create("repvgg_a0", num_classes=2, depths=(1,), widths=(4,), strides=(2,))
    (tmp_path / "mine.py").write_text("MINE = 1")
    with pytest.raises(rj.UsageError, match=r"mine\.py is a module of your own"):
        exported(net.clone(block="fused"), tmp_path / "mine.pth", 8)
    assert (tmp_path / "mine.py").read_text() == "MINE = 1"


def test_the_name_must_be_one_of_a_module(tmp_path):
    net = rj.create("repvgg_a0", num_classes=2, depths=(1,), widths=(4,), strides=(2,))
    for name in ("model-1.pth", "model.bin", "class.pth", "torch.pth", "pathlib.pth"):
        with pytest.raises(rj.UsageError, match=r"give a name such as model\.pth"):
            exported(net.clone(block="fused"), tmp_path / name, 8)

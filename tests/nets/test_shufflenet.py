"""ShuffleNetV1 computes what a net in PyTorch does that was written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import repvgg_jax as rj
from repvgg_jax.nets import abstract
from repvgg_jax.nets.shufflenet import channel_shuffle

torch = pytest.importorskip("torch", reason="torch is not installed: the other side is missing")
from experiments.reference.torch_models import random_images, randomize  # noqa: E402
from repvgg_jax.interop.pytorch_layout import DENSE, conv_bn_entries  # noqa: E402
from tests.support.shufflenet_v1 import ShuffleNetV1  # noqa: E402
from tests.support.torch_weights import assert_same_logits  # noqa: E402

SMALL = {"depths": (2, 1), "widths": (24, 48), "width": 6, "groups": 3}


def test_a_shuffle_takes_the_first_channel_of_each_group_first():
    shuffled = channel_shuffle(jnp.arange(6.0).reshape(1, 1, 1, 6), 3)
    assert shuffled.ravel().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.medium
def test_logits_equal_the_papers_in_both_forms():
    images = random_images(2, 32)
    module = randomize(ShuffleNetV1(**SMALL, num_classes=5), images)
    net = rj.create("shufflenetv1_100_g3", **SMALL, num_classes=5)
    entries = []
    for spec in net.plan():
        unit = spec.name.removesuffix(f"_{spec.role}")
        name = f"units.{unit}.{spec.role}" if spec.role else "stem"
        entries += conv_bn_entries(f"{name}.0", f"{name}.1", spec.name)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    leaves = {path: change.to_ours(state[name]) for name, path, change in entries}
    leaves["params/head/kernel"] = DENSE.to_ours(state["head.weight"])
    variables = unflatten_dict(leaves, sep="/")
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, abstract(net))
    assert_same_logits(module, images, (net, variables), rj.fuse(net, variables))

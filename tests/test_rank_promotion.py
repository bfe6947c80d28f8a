"""The library broadcasts explicitly: it traces where JAX refuses to promote ranks."""

import jax
import jax.numpy as jnp
import pytest

import repvgg_jax as rj
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.data.images import to_network_input
from repvgg_jax.training.mixing import mix

SMALL = {"num_classes": 10, "depths": (1, 2), "widths": (16, 16), "strides": (2, 1)}
FIVE_STAGES = {"depths": (1, 1, 1, 3, 1), "widths": (16,) * 5, "strides": (2,) * 5}


@pytest.fixture(autouse=True)
def _raise():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("strides", "groups", "size"), [(1, 1, 3), (2, 2, 3), (1, 8, 5)])
def test_blocks(name, strides, groups, size):
    block = BLOCKS[name](features=8, strides=strides, groups=groups, kernel_size=size)
    x = jax.ShapeDtypeStruct((4, 8, 8, 8), jnp.float32)
    variables = jax.eval_shape(lambda x: block.init(jax.random.key(0), x), x)

    def loss(variables, x):
        return block.apply(variables, x, True, mutable=["batch_stats"])[0].sum()

    jax.eval_shape(jax.grad(loss), variables, x)
    jax.eval_shape(block.apply, variables, x)
    if block.fusable:
        stats = variables.get("batch_stats", {})
        kernel, _ = jax.eval_shape(block.fuse, variables["params"], stats)
        assert kernel.shape == (size, size, 8 // groups, 8)


@pytest.mark.parametrize("name", ["repvgg_d2se", "repvgg_plus_l2pse", "mobileone_s0"])
def test_nets(name):
    net = rj.create(name, **SMALL | (FIVE_STAGES if "plus" in name else {}))
    variables = jax.eval_shape(lambda key: rj.init(net, key, 64), jax.random.key(0))
    images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.uint8)

    def loss(variables, images, key):
        images = to_network_input(images, (0.5,) * 3, (0.5,) * 3)
        images, _ = mix(key, images, jnp.ones((4, 10)), mixup=0.2, cutmix=1.0)
        return net.apply(variables, images, train=True, mutable=["batch_stats"])[0].sum()

    jax.eval_shape(jax.grad(loss), variables, images, jax.random.key(0))
    jax.eval_shape(lambda variables: rj.fuse(net, variables)[1], variables)

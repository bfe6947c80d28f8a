"""BatchNorm statistics of groups of images."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.runtime.mesh import (
    batch_sharding,
    make_mesh,
    replicate,
    shard_batch,
)
from repvgg_jax.training import step as step_module
from tests.support.runs import batch_of
from tests.support.steps import COLLECTIVES, assert_close, small_net, state_on
from tests.support.variables import random_images, random_variables


def test_groups_have_their_own_statistics():
    x = random_images(12, 5, 4, 6, seed=1)
    norm = BatchNorm(True, 4)
    variables = norm.init(jax.random.key(0), x)
    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    parts = x.reshape(3, 4, 5, 4, 6)
    mean, var = parts.mean((1, 2, 3), keepdims=True), parts.var((1, 2, 3), keepdims=True)
    expected = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean.mean(0).ravel(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var.mean(0).ravel(), rtol=1e-5)


def test_a_group_of_the_whole_batch_is_no_group_and_flax_agrees():
    from flax import linen as nn

    x = random_images(8, 5, 4, 6, seed=1)
    ours = [BatchNorm(True, size) for size in (None, 8)]
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    variables = ours[0].init(jax.random.key(0), x)
    results = [norm.apply(variables, x, mutable=["batch_stats"]) for norm in (*ours, flax)]
    for other in results[1:]:
        assert_close(results[0], other, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, results[0], results[1])


def test_a_group_that_does_not_divide_the_batch_is_named():
    with pytest.raises(rj.UsageError, match="bn_group_size=5 does not divide a batch of 8"):
        BatchNorm(True, 5).init_with_output(jax.random.key(0), jnp.zeros((8, 2, 2, 3)))


def compiled_gradient(group):
    """Returns the HLO of the logits and of the gradient with respect to the images."""
    mesh, net = make_mesh(), small_net(bn_group_size=group)
    variables = replicate(random_variables(net, 0, 8), mesh)
    images = shard_batch({"image": random_images(32, 8, 8, 3)}, mesh)["image"]

    def logits_and_gradient(images):
        def loss(images):
            logits, _ = net.apply(variables, images, train=True, mutable=["batch_stats"])
            return (logits**2).sum(-1), logits

        value, pullback, logits = jax.vjp(loss, images, has_aux=True)
        return logits, pullback(jnp.ones_like(value))[0]

    whole = jax.jit(logits_and_gradient, out_shardings=batch_sharding(mesh))
    return whole.lower(images).compile().as_text()


@pytest.mark.parametrize("group", [8, 4, 1])
def test_groups_within_a_device_need_no_collective(group):
    assert not re.findall(COLLECTIVES, compiled_gradient(group))


@pytest.mark.parametrize("group", [None, 16])
def test_groups_over_devices_do_need_collectives(group):
    assert "all-reduce" in re.findall(COLLECTIVES, compiled_gradient(group))


@pytest.mark.medium
def test_a_step_with_groups_reduces_once_for_all():
    """Only gradients and running statistics are reduced, independently of each other."""
    counts = {}
    for group in (None, 8):
        mesh, net = make_mesh(), small_net(bn_group_size=group, depths=(1, 4))
        state = state_on(net, mesh)
        batch = shard_batch(batch_of(32), mesh)
        text = (
            jax.jit(step_module.train_step)
            .lower(state, batch, jax.random.key(0))
            .compile()
            .as_text()
        )
        counts[group] = len(re.findall(COLLECTIVES, text))
    assert counts[8] < counts[None] / 3, counts

"""Training steps of a small net on a given mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import repvgg_jax as rj
from repvgg_jax.config.build import StepOptions
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.mesh import (
    parameter_shardings,
    shard_batch,
)
from repvgg_jax.training import state as state_module
from repvgg_jax.training import step as step_module
from tests.support.runs import MEAN, STD, batch_of
from tests.support.variables import random_variables

COLLECTIVES = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def small_net(**overrides):
    fields = {"num_classes": 10, "depths": (1, 2), "widths": (8, 16), "strides": (2, 1)}
    return rj.create("repvgg_a0", **fields | overrides)


def state_on(net, mesh, min_size=64):
    """Returns a state of random variables with `init_state`'s shardings, without compilation."""
    variables, tx = random_variables(net, 0, 8), sgd.sgd(lambda step: 0.1)
    params, stats = variables["params"], variables["batch_stats"]
    state = state_module.TrainState(jnp.int32(0), params, stats, tx.init(params), None, net, tx)
    return jax.device_put(state, parameter_shardings(state, mesh, min_size))


def take_steps(net, mesh, count=3, size=32, **options):
    state = state_on(net, mesh)
    split = mesh if mesh.shape["fsdp"] > 1 else None
    step_options = StepOptions(mean=MEAN, std=STD, **options)
    step = jax.jit(partial(step_module.train_step, options=step_options, mesh=split))
    for seed in range(count):
        state, metrics = step(state, shard_batch(batch_of(size, seed), mesh), jax.random.key(0))
    return jax.device_get(state.eval_variables), jax.device_get(metrics)


def assert_close(a, b, rtol=2e-4, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)

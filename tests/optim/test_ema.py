"""EMA of parameters and statistics, and re-estimated statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.config.build import StepOptions, build
from repvgg_jax.nets import Averaged, as_average
from repvgg_jax.optim.ema import decay_at, initial_weight, update_average
from repvgg_jax.runtime.mesh import make_mesh
from repvgg_jax.training import evaluation
from repvgg_jax.training import state as state_module
from repvgg_jax.training import step as step_module
from repvgg_jax.training import train as train_module
from tests.support.runs import MEAN, STD, batch_of, tiny_config, train
from tests.support.variables import random_images, random_variables


def tiny():
    net = rj.create("repvgg_a0", num_classes=5, depths=(1, 2), widths=(4, 8), strides=(1, 2))
    return net, random_variables(net, 1, 8)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_average_follows_both_collections_and_stays_marked():
    _, first = tiny()
    second = jax.tree.map(lambda leaf: leaf + 1.0, first)
    average = jax.jit(update_average)(as_average(first), second, 0.75)
    assert all(isinstance(average[name], Averaged) for name in ("params", "batch_stats"))
    for name in first:
        expected = jax.tree.map(lambda leaf: leaf + 0.25, first[name])
        close(dict(average[name]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 40])
def test_weight_of_the_initial_values_is_what_is_left_of_them(steps, warmup):
    average = {"params": {"x": jnp.float32(1.0)}}
    for step in range(steps):
        decay = decay_at(step, 0.9, warmup)
        average = update_average(average, {"params": {"x": jnp.float32(0.0)}}, decay)
    weight = initial_weight(steps, 0.9, warmup)
    assert float(average["params"]["x"]) == pytest.approx(weight, rel=1e-4, abs=1e-12)


def test_the_warm_up_ends_at_the_decay():
    assert float(decay_at(0, 0.9999, True)) == pytest.approx(0.1)
    assert float(decay_at(10**6, 0.9999, True)) == pytest.approx(0.9999)
    assert initial_weight(10**7, 0.9999, True) < 1e-12


@pytest.mark.parametrize(
    ("options", "steps", "warns"),
    [
        ({"ema_decay": 0.9999, "ema_warmup": False}, 180, True),
        ({"ema_decay": 0.9999}, 180, False),
        ({"ema_decay": 0.99, "ema_warmup": False}, 1000, False),
        ({}, 1, False),
    ],
)
def test_an_average_that_is_too_slow_for_the_run_is_announced(options, steps, warns, caplog):
    config = tiny_config(train_steps=steps)
    config.optim.update(options)
    train_module.warn_about_average(build(config))
    assert ("will still consist of 98% initial weights" in caplog.text) == warns


@pytest.mark.medium
def test_a_mixed_pair_is_refused_and_a_true_one_fuses():
    net, raw = tiny()
    average = update_average(as_average(raw), jax.tree.map(lambda leaf: leaf * 1.1, raw), 0.5)
    assert rj.verify(net, average, random_images(4, 8, 8, 3, seed=0)).exact
    for mixed in (
        {"params": average["params"], "batch_stats": raw["batch_stats"]},
        {"params": raw["params"], "batch_stats": jax.device_put(average["batch_stats"])},
    ):
        with pytest.raises(rj.UsageError, match="parameters do not match"):
            rj.fuse(net, mixed)


@pytest.mark.medium
def test_reestimated_statistics_are_those_of_all_the_pixels():
    net, variables = tiny()
    images = random_images(4, 6, 8, 8, 3, seed=5) + jnp.arange(4.0).reshape(4, 1, 1, 1, 1)
    everything = images.reshape(-1, 8, 8, 3)
    got = rj.reestimate_batch_stats(net, variables, [everything[:16], everything[16:]])
    kernel = variables["params"]["stage0_block0"]["conv_1x1"]["kernel"][0, 0]
    y = everything @ kernel
    stem = got["batch_stats"]["stage0_block0"]["bn_1x1"]
    close(stem, {"mean": y.mean((0, 1, 2)), "var": y.var((0, 1, 2))}, rtol=1e-4, atol=1e-5)
    # With one batch, evaluation mode and training mode give the same outputs on that batch.
    single = rj.reestimate_batch_stats(net, variables, [images[0]])
    trained, _ = net.apply(variables, images[0], train=True, mutable=["batch_stats"])
    close(net.apply(single, images[0]), trained, rtol=1e-3, atol=1e-3)
    assert isinstance(
        rj.reestimate_batch_stats(net, as_average(variables), [images[0]])["batch_stats"], Averaged
    )
    with pytest.raises(rj.UsageError, match="no batch"):
        rj.reestimate_batch_stats(net, variables, [])


def test_frozen_blocks_keep_their_statistics_and_what_follows_is_measured_behind_them():
    _, variables = tiny()
    frozen = rj.create(
        "repvgg_a0",
        num_classes=5,
        depths=(1, 2),
        widths=(4, 8),
        strides=(1, 2),
        frozen=("stage0_.*",),
    )
    images = random_images(6, 8, 8, 3, seed=5)
    got = rj.reestimate_batch_stats(frozen, variables, [images])
    close(got["batch_stats"]["stage0_block0"], variables["batch_stats"]["stage0_block0"], rtol=0)
    # The first block after the frozen one reads its output in evaluation mode.
    stem = {name: tree["stage0_block0"] for name, tree in variables.items()}
    x = jax.nn.relu(frozen.blocks()["stage0_block0"].apply(stem, images))
    y = x[:, ::2, ::2] @ variables["params"]["stage1_block0"]["conv_1x1"]["kernel"][0, 0]
    found = got["batch_stats"]["stage1_block0"]["bn_1x1"]
    close(found, {"mean": y.mean((0, 1, 2)), "var": y.var((0, 1, 2))}, rtol=1e-3, atol=1e-5)


def test_a_constant_channel_has_no_negative_variance():
    net, variables = tiny()
    ones = 1000.0 * jnp.ones((4, 8, 8, 3))
    got = rj.reestimate_batch_stats(net, variables, [ones, ones, ones])
    stem = got["batch_stats"]["stage0_block0"]["bn_1x1"]
    assert float(stem["var"].min()) >= 0.0


@pytest.mark.medium
def test_a_run_with_ema_evaluates_saves_and_resumes_the_average(tmp_path):
    config = tiny_config(optim_ema_decay=0.5)
    whole = train(config, tmp_path / "whole").state
    assert isinstance(whole.eval_variables["params"], Averaged)
    _, loaded = rj.load(tmp_path / "whole")
    close(loaded, whole.ema, rtol=0)  # both are `Averaged`, or the trees would differ
    with pytest.raises(rj.UsageError, match="parameters do not match"):
        evaluation.evaluate(whole.net, {**loaded, "batch_stats": whole.batch_stats}, [])
    raw = jax.device_get(whole.params)
    pairs = zip(jax.tree.leaves(loaded["params"]), jax.tree.leaves(raw), strict=True)
    assert any((average != trained).any() for average, trained in pairs)

    first = state_module.init_state(whole.net, whole.tx, make_mesh(), jax.random.key(0), ema=True)
    options = StepOptions(ema_decay=0.9, ema_warmup=False, mean=MEAN, std=STD)
    step = jax.jit(partial(step_module.train_step, options=options))
    state, _ = step(first, batch_of(8), jax.random.key(0))
    expected = jax.tree.map(
        lambda a, b: 0.9 * a + 0.1 * b, first.train_variables, state.train_variables
    )
    close({k: dict(v) for k, v in state.ema.items()}, expected, rtol=1e-5, atol=1e-6)

    resumed = train(config, tmp_path / "whole").state
    close(resumed.train_variables, whole.train_variables, rtol=0)
    close(resumed.ema, whole.ema, rtol=0)

"""Training the plain net with scaled gradients equals training the branches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import repvgg_jax as rj
from repvgg_jax.config.build import build, make_net
from repvgg_jax.config.optimizer import make_optimizer
from repvgg_jax.nets import abstract
from repvgg_jax.optim import sgd as sgd_module
from repvgg_jax.optim.repoptimizer import multiplier, scale_gradients, to_plain, with_scales
from repvgg_jax.training import transfer
from tests.support.runs import equal, tiny_config, train
from tests.support.variables import random_images, randomised

SCALES = ((r".*/scale_(kxk|1x1)", 0.0),)  # constant; the identity's is trained


def losses(net, tx, variables, batches):
    """Returns the losses of training steps and the final variables."""
    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)

    @jax.jit
    def step(params, stats, state, x, y):
        def loss(params):
            logits, new = net.apply(
                {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
            )
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return cross_entropy.mean(), new["batch_stats"]

        (value, stats_), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state_ = tx.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), stats_, state_

    found = []
    for x, y in batches:
        value, params, stats, state = step(params, stats, state, x, y)
        found.append(float(value))
    return found, {"params": params, "batch_stats": stats}


@pytest.mark.medium
@pytest.mark.parametrize("groups", [1, 2])
def test_masked_gradients_train_as_the_branches_do(groups):
    with jax.enable_x64(True):
        net = rj.create(
            "repvgg_a0",
            block="csla",
            num_classes=5,
            depths=(1, 3),
            widths=(4, 8),
            strides=(1, 2),
            groups=groups,
            dtype="float64",
        )
        shapes = abstract(net)
        variables = randomised(shapes, 1, "float64")
        batches = [
            (random_images(8, 8, 8, 3, seed=i, dtype="float64"), np.arange(8) % 5) for i in range(5)
        ]
        # All summands of a kernel have the same decay, and so has the kernel.
        decay = ((r".*/kernel|.*/scale_identity", 1.0),)
        sgd = sgd_module.sgd(
            lambda step: 0.05,
            weight_decay=1e-2,
            decay_rules=decay,
            nesterov=True,
            rate_rules=SCALES,
        )
        branches, trained = losses(net, sgd, variables, batches)
        plain, start = to_plain(net, variables)
        masked = optax.chain(scale_gradients(net, variables), sgd)
        single, ended = losses(plain, masked, start, batches)
        unmasked, _ = losses(plain, sgd, start, batches)
        np.testing.assert_allclose(single, branches, rtol=1e-11)
        assert abs(unmasked[-1] - branches[-1]) > 1e-4
        expected = to_plain(net, trained)[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), ended, expected)


@pytest.mark.medium
def test_the_plain_net_starts_as_the_branches_function():
    net = rj.create(
        "repvgg_d2se", block="csla", num_classes=5, depths=(1, 2), widths=(16, 16), strides=(1, 2)
    )
    fresh = rj.init(net, jax.random.key(0), 8)
    searched = randomised(fresh, 3)
    variables = with_scales(net, fresh, searched)
    equal(
        variables["params"]["stage1_block1"]["scale_kxk"],
        searched["params"]["stage1_block1"]["scale_kxk"],
    )
    equal(
        variables["params"]["stage1_block1"]["conv_kxk"],
        fresh["params"]["stage1_block1"]["conv_kxk"],
    )
    plain, start = to_plain(net, variables)
    own = abstract(plain)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, start)
    x = random_images(4, 8, 8, 3)
    np.testing.assert_allclose(net.apply(variables, x), plain.apply(start, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(rj.UsageError, match="block='csla'"):
        to_plain(plain, start)


@pytest.mark.medium
def test_a_run_takes_its_scales_from_a_search(tmp_path, monkeypatch):
    config = tiny_config()
    config.optim.repoptimizer_from = str(tmp_path / "search")
    with pytest.raises(rj.UsageError, match=r"model\.block=plain"):
        train(config, tmp_path / "run")
    config.model.block = "plain"
    config.optim.weight_decay = 0.0
    net, key = make_net(config), jax.random.key(config.seed)
    branches = net.clone(block="csla")
    fresh = rj.init(branches, key)
    searched = randomised(fresh, 5)
    monkeypatch.setattr(transfer, "load", lambda workdir: (branches, searched))
    optimizer = make_optimizer(config, net, lambda step: 0.5)
    experiment = dataclasses.replace(build(config), optimizer=optimizer)
    experiment, start = transfer.with_repoptimizer(experiment)
    masked = experiment.optimizer
    equal(start, to_plain(branches, with_scales(branches, fresh, searched))[1])
    ones = jax.tree.map(jnp.ones_like, start["params"])
    updates, _ = masked.update(ones, masked.init(start["params"]), start["params"])
    for name in net.blocks():
        factor = multiplier(searched["params"][name], ones[name]["conv_kxk"]["kernel"])
        np.testing.assert_allclose(updates[name]["conv_kxk"]["kernel"], -0.5 * factor, rtol=1e-6)
    state = train(config, tmp_path / "run").state
    assert int(state.step) == 4
    config.model.initializer = "he"
    with pytest.raises(rj.UsageError, match=r"unset model\.initializer"):
        build(config)
    config.optim.clip_norm = 1.0
    with pytest.raises(rj.UsageError, match="unset them"):
        train(config, tmp_path / "other")

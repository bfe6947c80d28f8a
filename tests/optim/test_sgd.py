"""The optimizer, compared with the paper's update rule in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import repvgg_jax as rj
from configs import default
from repvgg_jax.config.build import StepOptions, make_net
from repvgg_jax.config.optimizer import make_optimizer
from repvgg_jax.optim import sgd
from repvgg_jax.training.state import TrainState
from repvgg_jax.training.step import train_step
from tests.support.variables import random_variables

PARAMS = {
    "stage0_block1": {
        "conv_kxk": {"kernel": np.array([1.0, -2.0])},
        "bn_kxk": {"scale": np.array([3.0]), "bias": np.array([-1.0])},
        "bn_identity": {"scale": np.array([0.5]), "bias": np.array([2.0])},
    },
    "head": {"kernel": np.array([4.0]), "bias": np.array([5.0])},
}
DECAYED = {"stage0_block1/conv_kxk/kernel", "stage0_block1/bn_identity/scale", "head/kernel"}


@pytest.mark.medium
@pytest.mark.parametrize("nesterov", [False, True])
def test_three_steps_of_sgd(nesterov):
    schedule = sgd.cosine_schedule(0.1, 512, total_steps=10, warmup_steps=2)
    rules = default.get_config().optim.decay_rules
    tx = sgd.sgd(
        schedule,
        nesterov=nesterov,
        weight_decay=0.01,
        decay_rules=rules,
        rate_rules=((r".*/bias", 2.0),),
    )
    params, state = PARAMS, tx.init(PARAMS)
    expected = {
        "/".join(k.key for k in p): np.array(v) for p, v in jax.tree.leaves_with_path(PARAMS)
    }
    trace = dict.fromkeys(expected, 0.0)
    for step in range(3):
        grads = jax.tree.map(lambda p, g=0.3 + step: np.full_like(p, g), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        rate = 0.2 * (step / 2 if step < 2 else 0.5 * (1 + np.cos(np.pi * (step - 2) / 8)))
        for name, value in expected.items():
            grad = 0.3 + step + (0.01 * value if name in DECAYED else 0.0)
            trace[name] = 0.9 * trace[name] + grad
            move = grad + 0.9 * trace[name] if nesterov else trace[name]
            expected[name] = value - rate * (2 if name.endswith("bias") else 1) * move
    for path, value in jax.tree.leaves_with_path(params):
        name = "/".join(k.key for k in path)
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


def test_schedule_scales_with_the_batch_and_ends_at_zero():
    schedule = sgd.cosine_schedule(0.1, 1024, total_steps=100)
    assert float(schedule(0)) == pytest.approx(0.4)
    assert float(schedule(50)) == pytest.approx(0.2)
    assert float(schedule(100)) == pytest.approx(0.0, abs=1e-8)


def test_first_rule_wins_and_must_match_the_whole_name():
    rules = ((r"head/.*", 0.0), (r".*/kernel", 1.0), (r"kernel", 7.0))
    factors = sgd.by_name(PARAMS, rules, default=0.5)
    assert factors["head"]["kernel"] == 0.0
    assert factors["stage0_block1"]["conv_kxk"]["kernel"] == 1.0
    assert factors["stage0_block1"]["bn_kxk"]["bias"] == 0.5


def two_branched(groups=1):
    """Returns a small net, and variables with BatchNorm scales of both signs."""
    fields = dict(depths=(1, 2), widths=(8, 8), strides=(2, 2), groups=groups)
    net = rj.create("repvgg_a0", num_classes=3, **fields)
    return net, random_variables(net, seed=0, image_size=8)


def taps_of(layers, stats):
    """Returns t_3, t_1 and the tap to which the center and the 1x1 fuse, in NumPy."""
    scales = [
        np.asarray(layers[bn]["scale"]) / np.sqrt(np.asarray(stats[bn]["var"]) + 1e-2)
        for bn in ("bn_kxk", "bn_1x1")
    ]
    center = np.asarray(layers["conv_kxk"]["kernel"])[1, 1]
    point = np.asarray(layers["conv_1x1"]["kernel"])[0, 0]
    return *scales, scales[0] * center + scales[1] * point


@pytest.mark.medium
@pytest.mark.parametrize("groups", [1, 2])
def test_custom_l2_decays_the_tap_that_two_branches_fuse_to(groups):
    _, variables = two_branched(groups=groups)
    params, stats = variables["params"], variables["batch_stats"]
    grads = jax.grad(lambda p: sgd.custom_l2(p, stats, 1e-2) / 2)(params)
    for block in (name for name in params if name.startswith("stage")):
        t3, t1, tap = taps_of(params[block], stats[block])
        expected = np.array(params[block]["conv_kxk"]["kernel"])
        expected[1, 1] = t3 * tap / (t3**2 + t1**2)
        found = grads[block]
        np.testing.assert_allclose(found["conv_kxk"]["kernel"], expected, rtol=1e-5, atol=1e-7)
        one = t1 * tap / (t3**2 + t1**2)
        np.testing.assert_allclose(found["conv_1x1"]["kernel"][0, 0], one, rtol=1e-5, atol=1e-7)
        # A gradient step with learning rate 1 removes the fused tap: both taps decay as one.
        moved = jax.tree.map(np.subtract, params[block], found)
        assert np.abs(taps_of(moved, stats[block])[2]).max() < 1e-5 * np.abs(tap).max()
    rest = {path[1].key for path, leaf in jax.tree.leaves_with_path(grads) if np.any(leaf)}
    assert rest == {"conv_kxk", "conv_1x1"}  # neither a BatchNorm nor the head


@pytest.mark.medium
def test_custom_l2_replaces_the_decay_of_the_kernels():
    net, variables = two_branched()
    decay_rules = ((r".*kernel", 1.0), (r".*/bn_identity/scale", 1.0))
    rules = {"weight_decay": 0.1, "decay_rules": decay_rules}
    # The gradient of the loss is zero, so only decay changes the parameters.
    params, stats = variables["params"], variables["batch_stats"]
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = sgd.sgd(lambda step: 1.0, **rules, custom_l2=True)
    updates, _ = tx.update(zero, tx.init(params), params)
    block = updates["stage1_block1"]
    assert not np.any(block["conv_kxk"]["kernel"])
    assert not np.any(block["conv_1x1"]["kernel"])
    np.testing.assert_allclose(
        block["bn_identity"]["scale"], -0.1 * params["stage1_block1"]["bn_identity"]["scale"]
    )
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * params["head"]["kernel"])

    batch = {"image": jnp.zeros((4, 8, 8, 3)), "label": jnp.array([0, 1, 2, 0])}
    moved = {}
    state = TrainState(
        jnp.int32(0), params, stats, optax.sgd(1.0).init(params), None, net, optax.sgd(1.0)
    )
    step = jax.jit(train_step, static_argnums=3)
    for decay in (0.0, 0.1):
        new, metrics = step(state, batch, jax.random.key(0), StepOptions(custom_l2=decay))
        moved[decay] = new.params, new.batch_stats, metrics["loss"]
    assert moved[0.0][2] == moved[0.1][2]
    penalty = lambda p, stats: 0.05 * sgd.custom_l2(p, stats)  # noqa: E731
    decay = jax.jit(jax.grad(penalty))(params, moved[0.0][1])
    expected = jax.tree.map(np.subtract, moved[0.0][0], decay)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved[0.1][0], expected
    )


@pytest.mark.parametrize("fields", [{"block": "dbb"}, {"branches": ("kxk", "identity")}])
def test_custom_l2_is_refused_for_other_blocks(fields):
    config = default.get_config()
    config.optim.custom_l2 = True
    make_optimizer(config, make_net(config), lambda step: 0.1)
    config.model.update(fields)
    with pytest.raises(rj.UsageError, match=r"optim.custom_l2 needs blocks with a kxk and a 1x1"):
        make_optimizer(config, make_net(config), lambda step: 0.1)

"""The optimizer against the update rule of the paper's runs, written out in NumPy."""

import jax
import numpy as np
import optax
import pytest

from configs import default
from repvgg_jax import optim

PARAMS = {
    "stage0_block1": {
        "conv3": {"kernel": np.array([1.0, -2.0])},
        "bn3": {"scale": np.array([3.0]), "bias": np.array([-1.0])},
        "bn0": {"scale": np.array([0.5]), "bias": np.array([2.0])},
    },
    "head": {"kernel": np.array([4.0]), "bias": np.array([5.0])},
}
DECAYED = {"stage0_block1/conv3/kernel", "stage0_block1/bn0/scale", "head/kernel"}


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_steps_of_sgd(nesterov):
    schedule = optim.cosine_schedule(0.1, 512, total_steps=10, warmup_steps=2)
    rules = default.get_config().optim.decay_rules
    tx = optim.sgd(
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
    schedule = optim.cosine_schedule(0.1, 1024, total_steps=100)
    assert float(schedule(0)) == pytest.approx(0.4)
    assert float(schedule(50)) == pytest.approx(0.2)
    assert float(schedule(100)) == pytest.approx(0.0, abs=1e-8)


def test_first_rule_wins_and_must_match_the_whole_name():
    rules = ((r"head/.*", 0.0), (r".*/kernel", 1.0), (r"kernel", 7.0))
    factors = optim.by_name(PARAMS, rules, default=0.5)
    assert factors["head"]["kernel"] == 0.0
    assert factors["stage0_block1"]["conv3"]["kernel"] == 1.0
    assert factors["stage0_block1"]["bn3"]["bias"] == 0.5

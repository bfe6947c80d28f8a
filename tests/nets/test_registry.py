"""Every model by its name: counts, the smallest images, both forms, and a training step.

New families are tested without a change here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.nets import NETS, abstract, smallest_side
from repvgg_jax.optim import sgd
from repvgg_jax.training.state import TrainState
from repvgg_jax.training.step import train_step
from tests.support.variables import random_images, random_variables

NAMES = rj.list_models()
QUICK = ("mobilenetv1_025",)
MOST_PARAMETERS = 12e6  # of nets that are computed; those of larger ones are shapes only


def run(net, variables, images):
    """Returns the logits of both forms, and the parameters and metrics after a training step."""
    fused_net, fused = rj.fuse(net, variables)
    params, stats = variables["params"], variables.get("batch_stats", {})
    tx = sgd.sgd(lambda step: 0.01)
    state = TrainState(jnp.int32(0), params, stats, tx.init(params), None, net, tx)
    batch = {"image": images, "label": jnp.arange(len(images)) % net.num_classes}
    after, metrics = train_step(state, batch, jax.random.key(0))
    return net.apply(variables, images), fused_net.apply(fused, images), after.params, metrics


def test_plans_are_consistent():
    for name in NAMES:
        plan = rj.create(name).plan()
        assert len({spec.name for spec in plan}) == len(plan), name
        for spec in plan:
            assert spec.inputs % spec.groups == 0 == spec.features % spec.groups, (name, spec)


def test_the_error_for_a_block_without_a_place_lists_all_nets_that_have_one():
    with pytest.raises(rj.UsageError, match="has no place for it") as error:
        rj.create("densenet121", block="acb")
    listed = str(error.value).partition("choose a net that has: ")[2].split(", ")
    assert all(rj.list_models(pattern) for pattern in listed)
    for cls, name in {type(make()): name for name, make in NETS.items()}.items():
        try:
            has_place = bool(rj.create(name, block="acb"))
        except rj.UsageError:
            has_place = False
        assert (f"{cls.__module__.rpartition('.')[2]}*" in listed) == has_place, name


@pytest.mark.medium
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_model_counts_computes_folds_and_learns(name):
    net = rj.create(name, num_classes=10)
    shapes = abstract(net)
    fused_net = net.clone(block="fused")
    fused = abstract(fused_net)
    assert 0 < count_parameters(fused) <= count_parameters(shapes)
    assert 0 < count_macs(fused_net, fused) <= count_macs(net, shapes)

    side = smallest_side(net)
    images = random_images(4, side, side, 3)
    if side > 1:
        with pytest.raises(rj.UsageError, match=f"takes {side}x{side} or larger"):
            jax.eval_shape(net.apply, shapes, images[:, 1:])
    if count_parameters(shapes) > MOST_PARAMETERS:
        logits, fused_logits, params, _ = jax.eval_shape(partial(run, net), shapes, images)
        assert logits.shape == fused_logits.shape == (4, 10)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes["params"])
        return
    variables = random_variables(net, 0)
    logits, fused_logits, params, metrics = jax.jit(partial(run, net))(variables, images)
    assert np.isfinite(logits).all()
    assert np.isfinite(fused_logits).all()
    # Each block by itself, since some deep nets with random weights amplify rounding errors.
    report = rj.verify(net, variables, images)
    assert set(report.blocks) == set(net.blocks())
    assert max(report.blocks.values(), default=0) < 1e-5
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    head = variables["params"]["head"]  # without a bias in ShuffleNetV1
    assert all((params["head"][key] != value).any() for key, value in head.items())

"""The same step on every mesh, and in microbatches."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.config.build import StepOptions
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.mesh import (
    make_mesh,
    parameter_shardings,
    shard_batch,
)
from repvgg_jax.training import state as state_module
from repvgg_jax.training import step as step_module
from repvgg_jax.training.metrics import read_metrics
from tests.support.runs import batch_of, tiny_config, train
from tests.support.steps import COLLECTIVES, assert_close, small_net, state_on, take_steps


# Sums over a batch in another order differ by 1e-7 of their size; three steps at a high learning
# rate make that about 1e-5. A wrong statistic or gradient is off by 1e-2 and more.
@pytest.mark.medium
@pytest.mark.parametrize(
    ("group", "options"),
    [(None, {}), (4, {"accumulate": 2}), (None, {"mixup": 0.2, "cutmix": 1.0})],
)
def test_every_mesh_takes_the_same_steps(group, options):
    net = small_net(bn_group_size=group)
    options = options | {"bn_group_size": group}
    results = [
        take_steps(net, make_mesh(data, fsdp), **options) for data, fsdp in ((1, 1), (4, 1), (2, 2))
    ]
    for other in results[1:]:
        assert_close(results[0], other)


@pytest.mark.medium
@pytest.mark.parametrize(("data", "fsdp"), [(1, 4), (2, 2)])
def test_parameters_and_optimizer_are_split_by_size(data, fsdp):
    mesh = make_mesh(data, fsdp)
    net = small_net(widths=(8, 64))
    state = state_module.init_state(
        net, sgd.sgd(lambda s: 0.1), mesh, jax.random.key(0), min_size=1000
    )
    for leaf in jax.tree.leaves(state):
        part = leaf.addressable_shards[0].data.size
        assert part == (leaf.size // fsdp if leaf.size >= 1000 else leaf.size)
    split = [leaf.shape for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert split.count((3, 3, 64, 64)) == 2  # the kernel and its momentum
    (spec,) = {leaf.sharding.spec for leaf in jax.tree.leaves(state) if leaf.shape == (3, 3, 8, 64)}
    assert spec == jax.sharding.PartitionSpec(None, None, None, "fsdp")


def test_an_array_that_the_axis_does_not_divide_is_copied():
    shapes = {"a": jnp.zeros((3, 5)), "b": jnp.zeros((6, 4)), "c": jnp.zeros(())}
    found = parameter_shardings(shapes, make_mesh(1, 4), min_size=1)
    assert found["a"].is_fully_replicated
    assert found["c"].is_fully_replicated
    assert found["b"].spec == jax.sharding.PartitionSpec(None, "fsdp")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, 3), "must equal the device count"),
        ((-1, -1), "only one of them"),
        ((0, 1), "mesh.data=0"),
        ((2, 8), "must equal the device count"),
    ],
)
def test_meshes_that_do_not_fit(sizes, message):
    with pytest.raises(rj.UsageError, match=message):
        make_mesh(*sizes)


def test_one_process_may_leave_devices_alone():
    assert make_mesh(3, 1).shape == {"data": 3, "fsdp": 1}


@pytest.mark.medium
def test_only_parameters_move_under_fsdp():
    """Exactly the split parameters are gathered, and nothing as large as an activation moves."""
    mesh = make_mesh(1, 4)
    net = small_net(widths=(8, 64))
    state = state_on(net, mesh, min_size=1000)
    batch = shard_batch(batch_of(64), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(partial(step_module.train_step, mesh=mesh), out_shardings=(shardings, None))
    text = step.lower(state, batch, jax.random.key(0)).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    sizes = sorted(np.prod([int(n) for n in shape.split(",")]) for shape in gathered)
    split = [p.size for p in jax.tree.leaves(state.params) if not p.sharding.is_fully_replicated]
    assert sizes == sorted(split)
    assert "all-to-all" not in text


@pytest.mark.medium
def test_accumulation_with_groups_is_the_whole_step():
    net, mesh = small_net(bn_group_size=2), make_mesh()
    options = dict(bn_group_size=2, mixup=0.4, label_smoothing=0.1)
    whole = take_steps(net, mesh, **options)
    for count in (2, 4):
        assert_close(whole, take_steps(net, mesh, accumulate=count, **options))


@pytest.mark.medium
def test_microbatches_stay_on_their_devices():
    mesh, net = make_mesh(), small_net(bn_group_size=4)
    state = state_on(net, mesh)
    batch = shard_batch(batch_of(32), mesh)
    step = jax.jit(
        partial(step_module.train_step, options=StepOptions(accumulate=2, bn_group_size=4))
    )
    text = step.lower(state, batch, jax.random.key(0)).compile().as_text()
    assert set(re.findall(COLLECTIVES, text)) == {"all-reduce"}
    assert re.search(r" convolution\(.*op_name=", text)
    assert not re.search(r" convolution\(.*/while/body/", text)  # slow on a CPU


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_bn_group_size": 5}, "model.bn_group_size=5: must divide"),
        ({"train_accumulate": 3}, r"train.batch_size=32: 4 devices with 3 microbatches.*24 or 36"),
        ({"mesh_fsdp": 3}, "mesh.fsdp=3"),
        ({"train_mixup": -1.0}, "train.mixup=-1.0"),
        ({"train_mixup": 0.2, "train_batch_size": 33}, "train.batch_size=33: must be even"),
    ],
)
def test_fields_that_conflict_are_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(rj.UsageError, match=message):
        train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.medium
def test_runs_on_one_device_and_on_two_by_two_are_alike(tmp_path):
    curves, variables = [], []
    for name, data, fsdp in (("one", 1, 1), ("four", 2, 2)):
        config = tiny_config(mesh_data=data, mesh_fsdp=fsdp, mesh_min_size=64)
        train(config, tmp_path / name)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        curves.append([row["loss"] for row in rows])
        variables.append(rj.load(tmp_path / name)[1])
    np.testing.assert_allclose(*curves, rtol=1e-5)
    assert_close(*variables)


@pytest.mark.medium
def test_averages_of_microbatches_divide_what_they_add():
    net = small_net(bn_group_size=8)
    _, whole = take_steps(net, make_mesh(1), count=1, bn_group_size=8)
    _, parts = take_steps(net, make_mesh(1), count=1, bn_group_size=8, accumulate=4)
    assert set(whole) == set(parts) == {"loss", "top1", "grad_norm"}
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-4)

"""The same step however it is cut: devices, axes, BatchNorm groups, microbatches, kept values."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.config.build import make_source
from repvgg_jax.fusion.verify import relative_error
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.compilation import compiler_options
from repvgg_jax.runtime.mesh import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    replicate,
    shard_batch,
)
from repvgg_jax.training import step as step_module
from repvgg_jax.training import train
from repvgg_jax.training.metrics import read_metrics
from repvgg_jax.training.mixing import mix
from tests.support.runs import MEAN, STD, batch_of, tiny_config
from tests.support.variables import random_images, random_variables

COLLECTIVES = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def small_net(**overrides):
    fields = {"num_classes": 10, "depths": (1, 2), "widths": (8, 16), "strides": (2, 1)}
    return rj.create("repvgg_a0", **fields | overrides)


def state_on(net, mesh, min_size=64):
    """A state of random variables, laid out as `init_state` would; nothing is compiled for it."""
    variables, tx = random_variables(net, 0, 8), sgd.sgd(lambda step: 0.1)
    params, stats = variables["params"], variables["batch_stats"]
    state = step_module.TrainState(jnp.int32(0), params, stats, tx.init(params), None, net, tx)
    return jax.device_put(state, parameter_shardings(state, mesh, min_size))


def take_steps(net, mesh, count=3, size=32, **options):
    state = state_on(net, mesh)
    split = mesh if mesh.shape["fsdp"] > 1 else None
    step = jax.jit(partial(step_module.train_step, mean=MEAN, std=STD, mesh=split, **options))
    for seed in range(count):
        state, metrics = step(state, shard_batch(batch_of(size, seed), mesh), jax.random.key(0))
    return jax.device_get(state.variables), jax.device_get(metrics)


def assert_close(a, b, rtol=2e-4, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


# --- Devices and axes -----------------------------------------------------------------------------


# Sums over a batch are taken in another order, at 1e-7 of their size; three steps at a high rate
# make that some 1e-5. A wrong statistic or gradient is off by 1e-2 and more.
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


@pytest.mark.parametrize(("data", "fsdp"), [(1, 4), (2, 2)])
def test_parameters_and_optimizer_are_split_by_size(data, fsdp):
    mesh = make_mesh(data, fsdp)
    net = small_net(widths=(8, 64))
    state = step_module.init_state(
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
    ("sizes", "says"),
    [
        ((-1, 3), "they must make 4"),
        ((-1, -1), "only one of them"),
        ((0, 1), "mesh.data=0"),
        ((2, 8), "they must make 4"),
    ],
)
def test_meshes_that_do_not_fit(sizes, says):
    with pytest.raises(rj.UsageError, match=says):
        make_mesh(*sizes)


def test_one_process_may_leave_devices_alone():
    assert make_mesh(3, 1).shape == {"data": 3, "fsdp": 1}


def test_only_parameters_move_under_fsdp():
    """What is gathered is what was split, and nothing of the size of an activation moves."""
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


# --- BatchNorm groups -----------------------------------------------------------------------------


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
    with pytest.raises(rj.UsageError, match="bn_group_size=5 does not divide 8"):
        BatchNorm(True, 5).init_with_output(jax.random.key(0), jnp.zeros((8, 2, 2, 3)))


def compiled_gradient(group):
    """HLO of logits and of the gradient to the images: neither adds up over the batch."""
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


def test_a_step_with_groups_reduces_once_for_all():
    """Gradients and running statistics only: their reductions wait for nothing in between."""
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


# --- Microbatches and rematerialisation -----------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_accumulation_with_groups_is_the_whole_step(count):
    net, mesh = small_net(bn_group_size=2), make_mesh()
    whole = take_steps(net, mesh, bn_group_size=2, mixup=0.4, label_smoothing=0.1)
    parts = take_steps(net, mesh, bn_group_size=2, mixup=0.4, label_smoothing=0.1, accumulate=count)
    assert_close(whole, parts)


def test_microbatches_stay_on_their_devices():
    mesh, net = make_mesh(), small_net(bn_group_size=4)
    state = state_on(net, mesh)
    batch = shard_batch(batch_of(32), mesh)
    step = jax.jit(partial(step_module.train_step, accumulate=2, bn_group_size=4))
    text = step.lower(state, batch, jax.random.key(0)).compile().as_text()
    assert set(re.findall(COLLECTIVES, text)) == {"all-reduce"}


@pytest.mark.parametrize("remat", ["nothing", "convolutions"])
def test_rematerialisation_changes_memory_and_nothing_else(remat):
    fields = {"depths": (1, 8)}
    memory, results = [], []
    images = random_images(16, 32, 32, 3)
    for net in (small_net(**fields), small_net(**fields, remat=remat)):
        variables = random_variables(net, 0)

        def loss(params, net=net, stats=variables["batch_stats"]):
            logits, updated = net.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable="batch_stats"
            )
            return (logits**2).sum(), updated

        options = compiler_options(jax.devices())  # as the training step has
        step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)
        compiled = step.lower(variables["params"]).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(compiled(variables["params"]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert relative_error(a, b) < 1e-4
    # XLA's CPU backend keeps little more than the convolutions' outputs in any case.
    assert remat == "convolutions" or memory[1] < 0.8 * memory[0]


def test_unknown_policies_and_groups_are_named():
    with pytest.raises(rj.UsageError, match="remat='all': one of nothing, convolutions"):
        small_net(remat="all")
    with pytest.raises(rj.UsageError, match="bn_group_size=0"):
        small_net(bn_group_size=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_bn_group_size": 5}, "model.bn_group_size=5: must divide"),
        ({"train_accumulate": 3}, r"train.batch_size=32: 4 devices with 3 microbatches.*24 or 36"),
        ({"mesh_fsdp": 3}, "mesh.fsdp=3"),
        ({"train_mixup": -1.0}, "train.mixup=-1.0"),
        ({"train_mixup": 0.2, "train_batch_size": 33}, "train.batch_size=33: must be even"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(changes, says, tmp_path):
    with pytest.raises(rj.UsageError, match=says):
        train.train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Mixing ---------------------------------------------------------------------------------------


def targets_of(count, classes=8):
    return jnp.asarray(np.eye(classes, dtype=np.float32)[np.arange(count) % classes])


def test_mixup_and_cutmix_mix_targets_as_they_mix_images():
    """Images that are constant, each of its own value: a mixed mean tells the true proportion."""
    values = jnp.arange(8.0)
    images = jnp.broadcast_to(values[:, None, None, None], (8, 16, 16, 3))
    for options in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        shares = []
        for seed in range(20):
            mixed, targets = mix(jax.random.key(seed), images, targets_of(8), **options)
            np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
            np.testing.assert_allclose(
                mixed.mean((1, 2, 3)), targets @ values, rtol=1e-4, atol=1e-4
            )
            shares.append(float(targets[0, 0]))
        assert max(shares) > 0.9
        assert min(shares) < 0.5
        assert len({round(share, 4) for share in shares}) > 5


def test_mixup_blends_and_cutmix_pastes():
    images = jnp.asarray(random_images(4, 16, 16, 3))
    others = images[jnp.array([1, 0, 3, 2])]
    mixed, targets = mix(jax.random.key(1), images, targets_of(4), mixup=0.8)
    np.testing.assert_allclose(
        mixed, targets[0, 0] * images + targets[0, 1] * others, rtol=1e-4, atol=1e-5
    )
    mixed, targets = mix(jax.random.key(3), images, targets_of(4), cutmix=1.0)
    pasted = np.asarray((mixed == others).all(-1))
    assert ((mixed == images).all(-1) | pasted).all()
    assert pasted[0].mean() == pytest.approx(float(targets[0, 1]), abs=1e-5)
    rows, columns = np.nonzero(pasted[0])
    box = pasted[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all()


def test_nothing_to_mix():
    images, targets = jnp.ones((4, 2, 2, 3)), targets_of(4)
    assert mix(jax.random.key(0), images, targets) == (images, targets)


def test_an_odd_batch_is_refused_rather_than_left_unmixed():
    with pytest.raises(rj.UsageError, match="a batch of 3 must be even"):
        mix(jax.random.key(0), jnp.ones((3, 2, 2, 3)), targets_of(3), mixup=0.2)


def test_lambda_follows_its_distribution():
    images, targets = jnp.zeros((2, 2, 2, 3)), targets_of(2)
    keys = jax.random.split(jax.random.key(0), 400)
    share = jax.vmap(lambda key: mix(key, images, targets, mixup=0.2)[1][0, 0])(keys)
    drawn = jax.random.beta(jax.random.key(1), 0.2, 0.2, (4000,))
    for quantile in (0.2, 0.5, 0.8):
        below = float((share < jnp.quantile(drawn, quantile)).mean())
        assert abs(below - quantile) < 0.08


# --- Whole runs -----------------------------------------------------------------------------------


def test_runs_on_one_device_and_on_two_by_two_are_alike(tmp_path):
    curves, variables = [], []
    for name, data, fsdp in (("one", 1, 1), ("four", 2, 2)):
        config = tiny_config(mesh_data=data, mesh_fsdp=fsdp, mesh_min_size=64)
        train.train(config, tmp_path / name)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        curves.append([row["loss"] for row in rows])
        variables.append(rj.load(tmp_path / name)[1])
    np.testing.assert_allclose(*curves, rtol=1e-5)
    assert_close(*variables)


def test_seeds_of_initialisation_order_and_augmentation_are_apart():
    def drawn(seed=0, data=None):
        config = tiny_config(train_steps=1)
        config.seed = seed
        config.data.update(padding=2, **data or {})
        source = make_source(config, "train")
        batch = next(train._train_batches(config, source, 0))
        return batch["label"].tolist(), batch["image"].tobytes()

    base = drawn()
    assert drawn(1, {"seed": 0, "augmentation_seed": 0}) == base
    order = drawn(0, {"seed": 1})
    assert order[0] != base[0]
    crops = drawn(0, {"augmentation_seed": 1})
    assert crops[0] == base[0]
    assert crops[1] != base[1]
    both = drawn(1)
    assert both[0] == order[0]
    assert both[1] != order[1]


def test_averages_of_microbatches_divide_what_they_add():
    net = small_net(bn_group_size=8)
    _, whole = take_steps(net, make_mesh(1), count=1, bn_group_size=8)
    _, parts = take_steps(net, make_mesh(1), count=1, bn_group_size=8, accumulate=4)
    assert set(whole) == set(parts) == {"loss", "top1", "grad_norm"}
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-4)

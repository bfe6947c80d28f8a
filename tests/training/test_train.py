"""Tests of the step, the evaluation and the loop on real digits."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import repvgg_jax as rj
from repvgg_jax.checkpoint import load
from repvgg_jax.checkpoint import manager as manager_module
from repvgg_jax.cli.opening import opening
from repvgg_jax.config.build import StepOptions, build
from repvgg_jax.data import images as images_module
from repvgg_jax.data.sources.base import ArraySource
from repvgg_jax.data.split import Split
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.optim import sgd
from repvgg_jax.runtime import mesh as mesh_module
from repvgg_jax.training import evaluation
from repvgg_jax.training import state as state_module
from repvgg_jax.training import step as step_module
from repvgg_jax.training import train as train_module
from repvgg_jax.training.environment import environment
from repvgg_jax.training.metrics import read_metrics
from tests.support.batches import PLAIN
from tests.support.faults import before_step
from tests.support.image_files import (
    encoded,
    noise,
    truncated_jpeg,
    write,
    write_prepared,
    write_tree,
)
from tests.support.runs import MEAN, STD, batch_of, equal, tiny_config, train


@pytest.mark.medium
def test_images_are_decoded_after_the_opening_and_before_anything_is_written(tmp_path):
    images = [encoded(noise(i, 8, 8)) for i in range(32)]
    images[-1] = images[-1][:50]
    labels = [index % 3 for index in range(32)]
    write_prepared(tmp_path / "data", images, labels, splits=("train", "test"))
    data = {"data_source": "tfds", "data_name": "tiny", "data_data_dir": str(tmp_path / "data")}
    experiment = build(tiny_config(model_num_classes=3, **data))
    assert "32 training and 32 evaluation images of 8x8 pixels, 3 classes" in opening(
        experiment, environment(experiment)
    )
    with pytest.raises(UsageError, match="cannot decode"):
        train_module.train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.medium
def test_files_that_are_no_images_are_found_before_training(tmp_path):
    write_tree(tmp_path / "data", splits=("train", "val"))
    broken = write(tmp_path / "data/val/bee/z.jpg", b"text")
    data = {"data_source": "folder", "data_data_dir": str(tmp_path / "data")}
    config = tiny_config(model_num_classes=2, train_batch_size=4, train_eval_batch_size=4, **data)
    with pytest.raises(UsageError, match=rf"cannot decode the image {broken}: cannot identify"):
        train(config, tmp_path / "run")
    truncated = write(tmp_path / "data/val/ant/x.jpg", truncated_jpeg())
    message = rf"2 of 8 images: {truncated} \(.* truncated .*\), {broken} \(.*\); replace"
    with pytest.raises(UsageError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def one_device():
    return Mesh(np.array(jax.devices()[:1]), ("data",))


def fresh_state(mesh):
    net = rj.create("repvgg_a0", num_classes=10, depths=(1, 2), widths=(4, 8), strides=(2, 1))
    return state_module.init_state(net, sgd.sgd(lambda step: 0.1), mesh, jax.random.key(0))


@pytest.mark.medium
def test_gradient_and_statistics_are_those_of_the_whole_batch():
    mesh, state = mesh_module.make_mesh(), fresh_state(mesh_module.make_mesh())
    batch = batch_of(32)
    new, _ = jax.jit(partial(step_module.train_step, options=StepOptions(mean=MEAN, std=STD)))(
        state, mesh_module.shard_batch(batch, mesh), jax.random.key(0)
    )
    x = (batch["image"] / 255 - np.array(MEAN)) / np.array(STD)
    kernel = jax.device_get(state.params["stage0_block0"]["conv_1x1"]["kernel"])[0, 0]
    y = x[:, ::2, ::2] @ kernel
    stats = jax.device_get(new.batch_stats["stage0_block0"]["bn_1x1"])
    np.testing.assert_allclose(stats["mean"], 0.1 * y.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * y.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.medium
def test_bfloat16_step_keeps_parameters_and_statistics_in_float32():
    net = rj.create(
        "repvgg_a0", num_classes=10, depths=(1, 1), widths=(4, 4), strides=(1, 1), dtype="bfloat16"
    )
    state = state_module.init_state(net, sgd.sgd(lambda step: 0.1), one_device(), jax.random.key(0))
    shapes, metrics = jax.eval_shape(step_module.train_step, state, batch_of(8), jax.random.key(0))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes.eval_variables)} == {"float32"}
    assert metrics["loss"].dtype == jnp.float32


@pytest.mark.medium
@pytest.mark.parametrize(("examples", "batch_size"), [(13, 4), (8, 8), (7, 32)])
def test_evaluation_counts_every_example_once(examples, batch_size, monkeypatch):
    net = rj.create("repvgg_a0", num_classes=10, depths=(1,), widths=(4,), strides=(2,))
    variables = rj.init(net, jax.random.key(0), image_size=8)
    whole = batch_of(examples)
    padded = {
        k: np.concatenate([v, np.zeros((-examples % batch_size, *v.shape[1:]), v.dtype)])
        for k, v in whole.items()
    }
    batches = [
        {k: v[start : start + batch_size] for k, v in padded.items()}
        for start in range(0, len(padded["label"]), batch_size)
    ]
    mesh = mesh_module.make_mesh()
    got = evaluation.evaluate(net, variables, batches, mesh=mesh, mean=MEAN, std=STD)
    source = ArraySource("noise", tuple("0123456789"), whole["image"], whole["label"])
    # XLA computes convolutions on the four CPU devices here.
    monkeypatch.setattr(evaluation, "is_slow_in_loops", lambda algorithm, dtype: False)
    on_devices = evaluation.Evaluation(Split(source, PLAIN, batch_size, 0, MEAN, STD), mesh)
    for _ in range(2):  # in calls of one batch, then of several
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-6), on_devices(net, variables), got
        )
    images = images_module.to_network_input(jnp.asarray(whole["image"]), MEAN, STD)
    logits = net.apply(variables, images)
    order = np.argsort(-np.asarray(logits), axis=-1)
    label = whole["label"]
    log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(examples), label]
    assert got["count"] == examples
    assert got["top1"] == pytest.approx((order[:, 0] == label).mean())
    assert got["top5"] == pytest.approx((order[:, :5] == label[:, None]).any(-1).mean())
    assert got["loss"] == pytest.approx(-log_p.mean(), rel=1e-5)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (label, order[:, 0]), 1)
    np.testing.assert_array_equal(got["confusion"], confusion)


@pytest.mark.medium
def test_two_steps_and_two_more_are_four_bit_for_bit(tmp_path):
    whole = train(tiny_config(), tmp_path / "whole").state

    class KilledError(Exception):
        pass

    def dies(state):
        raise KilledError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        before_step(patch, 4, dies)
        train(tiny_config(), tmp_path / "resumed")
    assert manager_module.steps(tmp_path / "resumed") == [2]
    resumed = train(tiny_config(), tmp_path / "resumed").state
    equal(resumed.eval_variables, whole.eval_variables)
    equal(resumed.optimizer_state, whole.optimizer_state)
    rows = read_metrics(tmp_path / "resumed/metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.medium
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    """The checkpoint that led to it is deleted; in test_nan_guard, an earlier one is kept."""
    config = tiny_config(train_steps=9, optim_learning_rate=1e20, train_checkpoint_every=1)
    with pytest.raises(
        RunError, match=r"step 2: loss .* learning rate .* last good checkpoint: none"
    ):
        train(config, tmp_path)
    assert manager_module.steps(tmp_path) == []


@pytest.mark.medium
def test_checkpoints_keep_the_latest_and_the_best(tmp_path):
    net_state = fresh_state(mesh_module.make_mesh())
    accuracy = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.6, 5: 0.1}
    with manager_module.open_manager(tmp_path, max_to_keep=2) as manager:
        for step, top1 in accuracy.items():
            position = {"seed": 0, "step": step}
            manager_module.save(
                manager,
                net_state.eval_variables,
                net_state.optimizer_state,
                position,
                {"top1": top1},
            )
    assert manager_module.steps(tmp_path) == [2, 4, 5]


def test_a_failed_last_save_is_reported_unless_another_error_came_first(tmp_path, monkeypatch):
    def close(manager):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(load.ocp.CheckpointManager, "close", close)
    with (
        pytest.raises(RunError, match="first"),
        manager_module.open_manager(tmp_path, max_to_keep=1),
    ):
        raise RunError("first")
    with (
        pytest.raises(RunError, match=r"could not be written to .*No space left"),
        manager_module.open_manager(tmp_path, max_to_keep=1),
    ):
        pass


@pytest.mark.medium
def test_a_checkpoint_of_four_devices_opens_on_one(tmp_path):
    many = fresh_state(mesh_module.make_mesh())
    with manager_module.open_manager(tmp_path, max_to_keep=1) as manager:
        manager_module.save(
            manager, many.eval_variables, many.optimizer_state, {"seed": 3, "step": 7}
        )
    one = fresh_state(one_device())
    with manager_module.open_manager(tmp_path, max_to_keep=1) as manager:
        restored = manager_module.restore_latest(manager, one.eval_variables, one.optimizer_state)
    equal(restored.variables, many.eval_variables)
    equal(restored.optimizer, many.optimizer_state)
    assert restored.position == {"seed": 3, "step": 7}
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(restored.variables)} == {1}


@pytest.mark.medium
def test_load_and_its_errors(tmp_path):
    config = tiny_config(train_steps=2)
    state = train(config, tmp_path / "run").state
    net, variables = rj.load(tmp_path / "run")
    assert net == state.net
    equal(variables, state.eval_variables)

    with pytest.raises(rj.UsageError, match="no run in"):
        rj.load(tmp_path / "nowhere")
    with pytest.raises(rj.UsageError, match="--mode=fuse"):
        rj.load(tmp_path / "run", fused=True)
    with pytest.raises(rj.UsageError, match=r"no checkpoint of step 9 .* available: \[2\]"):
        rj.load(tmp_path / "run", step=9)

    saved = json.loads((tmp_path / "run/config.json").read_text())
    saved["model"]["widths"] = [4, 16]
    (tmp_path / "run/config.json").write_text(json.dumps(saved))
    with pytest.raises(rj.UsageError, match=r"not match the net: shape of .* \(8,\), not \(16,\)"):
        rj.load(tmp_path / "run")
    saved["model"]["depths"] = [1, 1]
    (tmp_path / "run/config.json").write_text(json.dumps(saved))
    with pytest.raises(rj.UsageError, match=r"unexpected .*stage1_block1"):
        rj.load(tmp_path / "run")


@pytest.mark.medium
def test_a_truncated_checkpoint_is_named(tmp_path):
    train(tiny_config(train_steps=2), tmp_path)
    for path in (tmp_path / "checkpoints/2/variables").glob("**/d/*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(rj.UsageError, match="checkpoints/2"):
        rj.load(tmp_path)


@pytest.mark.medium
def test_a_workdir_of_another_config_is_left_alone(tmp_path):
    train(tiny_config(train_steps=1), tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(rj.UsageError, match=r"optim.momentum: 0.9 in the run, 0.5 now"):
        train(tiny_config(train_steps=1, optim_momentum=0.5), tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep")
    with pytest.raises(rj.UsageError, match="not empty"):
        train(tiny_config(), tmp_path / "notes")


def test_a_batch_that_devices_do_not_divide_names_one_that_they_do(tmp_path):
    with pytest.raises(rj.UsageError, match=r"train.batch_size=30: 4 devices.*28 or 32"):
        train(tiny_config(train_batch_size=30), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_log_every", 0),
        ("train_checkpoint_every", 0),
        ("train_keep", 0),
        ("train_batch_size", 0),
        ("fuse_verify_images", 0),
        ("optim_label_smoothing", 2.0),
        ("optim_learning_rate", -1.0),
        ("model_widths", (4, 0)),
        ("model_branches", ("identity",)),
        ("model_dtype", "float8_e4m3fn"),
        ("optim_decay_rules", (("(", 1.0),)),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_written(field, value, tmp_path):
    with pytest.raises(rj.UsageError, match=field.split("_", 1)[1].split("_")[0]):
        train(tiny_config(**{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.medium
def test_a_run_that_failed_before_its_first_checkpoint_may_be_corrected(tmp_path):
    with pytest.raises(RunError):
        train(tiny_config(optim_learning_rate=1e30, train_checkpoint_every=9), tmp_path)
    assert manager_module.steps(tmp_path) == []
    train(tiny_config(), tmp_path)
    assert manager_module.steps(tmp_path) == [2, 4]

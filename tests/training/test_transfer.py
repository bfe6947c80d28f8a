"""Tests of other heads, frozen stages, and BatchNorms for a fused net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.config.build import make_net
from repvgg_jax.config.optimizer import make_optimizer
from repvgg_jax.fusion.verify import relative_error
from repvgg_jax.nets import abstract
from repvgg_jax.training.transfer import transfer
from tests.support.runs import equal, tiny_config, train
from tests.support.variables import random_images, random_variables


def tiny(num_classes=5, **overrides):
    fields = {"depths": (1, 2), "widths": (4, 8), "strides": (1, 2)} | overrides
    net = rj.create("repvgg_a0", num_classes=num_classes, **fields)
    return net, random_variables(net, 1, 8)


def test_another_number_of_classes_reinitializes_the_head_alone():
    _, source = tiny(5)
    net, _ = tiny(7)
    fresh = rj.init(net, jax.random.key(9), image_size=8)
    variables, reinitialized = transfer(fresh, source)
    assert reinitialized == ["head"]
    equal(variables["params"]["head"], fresh["params"]["head"])
    for block in net.blocks():
        equal(variables["params"][block], source["params"][block])
    equal(variables["batch_stats"], source["batch_stats"])


@pytest.mark.parametrize("overrides", [{"widths": (4, 12)}, {"depths": (1, 1)}, {"depths": (1, 3)}])
def test_another_net_is_refused(overrides):
    _, source = tiny()
    net, _ = tiny(**overrides)
    with pytest.raises(rj.UsageError, match="stage1_block"):
        transfer(rj.init(net, jax.random.key(0), image_size=8), source)


def test_a_net_of_fewer_branches_is_refused():
    _, source = tiny()
    net, _ = tiny(block="plain")
    message = "not in the net: batch_stats/stage0_block0/bn_1x1/mean"
    with pytest.raises(rj.UsageError, match=message):
        transfer(rj.init(net, jax.random.key(0), image_size=8), source)


@pytest.mark.medium
def test_a_run_starts_from_another_with_its_first_stage_frozen(tmp_path):
    first = train(tiny_config(), tmp_path / "first").state
    config = tiny_config()
    config.init_from = str(tmp_path / "first")
    config.seed = 1
    config.model.frozen = ("stage0_.*",)
    second = train(config, tmp_path / "second").state
    for tree in ("params", "batch_stats"):
        equal(getattr(second, tree)["stage0_block0"], getattr(first, tree)["stage0_block0"])
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()),
            getattr(second, tree)["stage1_block1"],
            getattr(first, tree)["stage1_block1"],
        )
        assert all(jax.tree.leaves(moved))
    config.init_from = str(tmp_path / "nowhere")
    with pytest.raises(rj.UsageError, match="no run in"):
        train(config, tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.medium
def test_frozen_blocks_keep_their_squeeze_and_excite():
    config = tiny_config()
    config.model.update(
        name="repvgg_d2se", widths=(16, 16), frozen=("stage0_block0|stage1_block1",)
    )
    net = make_net(config)
    params = random_variables(net, 1, 8)["params"]
    tx = make_optimizer(config, net, lambda step: 0.1)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    still = {name for name, tree in updates.items() if not any(map(np.any, jax.tree.leaves(tree)))}
    frozen = {"stage0_block0", "stage1_block1"}
    assert still == frozen | {f"{name}_se" for name in frozen}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "overrides", "dtype"),
    [
        (
            "repvgg_plus_l2pse",
            {"depths": (1, 1, 1, 2), "widths": (4,) * 4, "strides": (1,) * 4},
            "float32",
        ),
        ("repvgg_a0", {}, "float16"),
    ],
)
def test_batch_norms_go_into_every_fused_net(name, overrides, dtype):
    fields = {"depths": (1, 2), "widths": (4, 8), "strides": (1, 2)} | overrides
    net = rj.create(name, num_classes=5, dtype=dtype, **fields)
    plain, fused = rj.fuse(net, random_variables(net, 1, 8))
    tunable, with_bn = rj.insert_bn(plain, fused, random_images(2, 16, 8, 8, 3, seed=3))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(with_bn)} == {"float32"}
    own = abstract(tunable)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, with_bn)
    x = random_images(8, 8, 8, 3, seed=4)
    wide = (net.clone(dtype=jnp.float32) for net in (plain, tunable))
    expected, got = (net.apply(v, x) for net, v in zip(wide, (fused, with_bn), strict=True))
    assert relative_error(expected, got) < 1e-5


@pytest.mark.medium
def test_inserted_batch_norms_keep_the_outputs_and_match_the_batch():
    net, variables = tiny()
    plain, fused = rj.fuse(net, variables)
    everything = random_images(48, 8, 8, 3, seed=3) + jnp.arange(48.0).reshape(48, 1, 1, 1) / 16
    batches = [everything[:40], everything[40:]]
    tunable, with_bn = rj.insert_bn(plain, fused, batches)
    own = abstract(tunable)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, with_bn)
    x = random_images(8, 8, 8, 3, seed=4)
    expected = plain.apply(fused, x)
    assert relative_error(expected, tunable.apply(with_bn, x)) < 1e-5
    again, refused = rj.fuse(tunable, with_bn)
    assert relative_error(expected, again.apply(refused, x)) < 1e-5
    # In training, the batch's statistics replace the calibrated ones, which on the calibration
    # images themselves changes nothing.
    trained, _ = tunable.apply(with_bn, everything, train=True, mutable=["batch_stats"])
    assert relative_error(plain.apply(fused, everything), trained) < 1e-3
    with pytest.raises(rj.UsageError, match="takes a fused net"):
        rj.insert_bn(net, variables, batches)
    with pytest.raises(rj.UsageError, match="no calibration batches"):
        rj.insert_bn(plain, fused, [])


@pytest.mark.medium
def test_training_a_fused_net_warns(tmp_path, caplog):
    config = tiny_config(train_steps=1)
    config.model.block = "fused"
    train(config, tmp_path / "run")
    assert "insert_bn" in caplog.text
    assert np.isfinite(float(jax.tree.leaves(rj.load(tmp_path / "run")[1])[0].sum()))


@pytest.mark.medium
def test_freezing_every_block_leaves_the_head_to_train():
    config = tiny_config()
    config.model.frozen = ("(?i).*STAGE.*",)
    net = make_net(config)
    params = random_variables(net, 1, 8)["params"]
    tx = make_optimizer(config, net, lambda step: 0.1)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert {n for n, tree in updates.items() if any(map(np.any, jax.tree.leaves(tree)))} == {"head"}


def test_auxiliary_heads_come_and_go():
    stages = {"depths": (1, 1, 1, 2), "widths": (4,) * 4, "strides": (1,) * 4}
    with_heads = rj.create("repvgg_plus_l2pse", num_classes=5, **stages)
    without = with_heads.without_auxiliary_heads()
    one, other = (random_variables(net, 1, 8) for net in (with_heads, without))
    assert transfer(other, one)[1] == []
    variables, reinitialized = transfer(one, jax.tree.map(lambda leaf: leaf + 1, other))
    assert reinitialized == ["aux_stage1", "aux_stage2", "aux_stage3"]
    equal(variables["params"]["aux_stage1"], one["params"]["aux_stage1"])
    equal(variables["params"]["head"], jax.tree.map(lambda leaf: leaf + 1, other["params"]["head"]))


def test_the_wrong_form_is_refused():
    net, variables = tiny()
    plain, fused = rj.fuse(net, variables)
    with pytest.raises(rj.UsageError, match="the train form"):
        rj.reestimate_batch_stats(plain, fused, [])
    with pytest.raises(ValueError, match="not this net's"):
        rj.insert_bn(plain, variables, [random_images(2, 8, 8, 3)])

"""The net as a backbone: maps of every stage, dilated stages, auxiliary heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import repvgg_jax as rj
from experiments.studies import segmentation
from repvgg_jax.config.build import StepOptions
from repvgg_jax.fusion.verify import relative_error
from repvgg_jax.optim import sgd
from repvgg_jax.runtime.compilation import jit_once
from repvgg_jax.training import step as step_module
from repvgg_jax.training.state import TrainState
from tests.support.variables import random_images, random_variables

TINY = {"num_classes": 5, "depths": (1, 1, 2, 4, 1), "widths": (16, 16, 16, 24, 32)}


def tiny(name="repvgg_a0", **overrides):
    overrides = {**TINY, "name": name, **overrides}
    net = rj.create(overrides.pop("name"), **overrides)
    return net, random_variables(net, 1)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("repvgg_a0", {}),
        ("repvgg_d2se", {}),
        ("repvgg_plus_l2pse", {}),
        ("repvgg_a0", {"output_stride": 8}),
        ("repvgg_a0", {"output_stride": 16, "dilated_layers": 5}),
    ],
)
def test_maps_are_what_was_told_and_equal_in_both_forms(name, overrides):
    net, variables = tiny(name, **overrides)
    x = random_images(2, 65, 48, 3)
    maps, stats = jit_once(net.features)(variables, x)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    info = net.feature_info()
    assert [entry.name for entry in info] == [f"stage{i}" for i in range(5)]
    for array, entry in zip(maps, info, strict=True):
        rows, columns = -(-65 // entry.stride), -(-48 // entry.stride)
        assert array.shape == (2, rows, columns, entry.channels)
    assert info[-1].stride == (net.output_stride or 32)
    plain, weights = rj.fuse(net, variables)
    fused_maps, none = jit_once(plain.features)(weights, x)
    assert none == {}
    for array, fused in zip(maps, fused_maps, strict=True):
        assert relative_error(array, fused) < 1e-5


def test_dilation_stands_where_strides_were_taken_away():
    dilations = {
        key: [spec.dilation for spec in tiny(**dict(overrides))[0].plan()]
        for key, overrides in {
            "none": {},
            "16": {"output_stride": 16},
            "8": {"output_stride": 8},
            "fast": {"output_stride": 8, "dilated_layers": 3},
        }.items()
    }
    assert dilations["none"] == [1] * 9
    assert dilations["16"] == [1] * 8 + [2]
    assert dilations["8"] == [1] * 4 + [2] * 4 + [4]
    assert dilations["fast"] == [1] * 6 + [2] * 2 + [4]


@pytest.mark.medium
def test_weights_carry_over_and_undilated_stages_see_no_difference():
    net, variables = tiny()
    dense, own = tiny(output_stride=8)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, variables)
    x = random_images(2, 64, 64, 3)
    maps, dilated = (jit_once(each.features)(variables, x)[0] for each in (net, dense))
    for stage in range(3):
        np.testing.assert_array_equal(maps[stage], dilated[stage])
    with pytest.raises(rj.UsageError, match="output_stride=12 cannot be reached"):
        tiny(output_stride=12)


@pytest.mark.medium
def test_features_in_training_give_new_statistics():
    net, variables = tiny()
    features = jit_once(partial(net.features, train=True))
    _, stats = features(variables, random_images(4, 32, 32, 3))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.medium
def test_auxiliary_heads_are_trainings_alone():
    net, variables = tiny("repvgg_plus_l2pse", depths=(1, 1, 1, 2, 1))
    x = random_images(8, 64, 64, 3)
    train = jit_once(partial(net.apply, train=True, mutable=["batch_stats", "auxiliary"]))
    logits, state = train(variables, x)
    others = jax.tree.leaves(state["auxiliary"])
    assert [other.shape for other in others] == [(8, 5)] * 3
    expected, quiet = jit_once(partial(net.apply, mutable=["auxiliary"]))(variables, x)
    assert quiet == {}
    plain, fused = rj.fuse(net, variables)
    assert not any(name.startswith("aux") for name in fused["params"])
    got = jit_once(partial(plain.apply, train=True))(fused, x)
    assert relative_error(expected, got) < 1e-5

    labels = jnp.arange(8) % 5
    tx, params = sgd.sgd(lambda step: 0.0), variables["params"]
    stats = variables["batch_stats"]
    state = TrainState(jnp.int32(0), params, stats, tx.init(params), None, net, tx)
    batch, loss = {"image": x, "label": labels}, []
    for weight in (0.0, 0.5):
        options = StepOptions(auxiliary_weight=weight)
        step = partial(step_module.train_step, options=options)
        # The gradient is not computed, as only the loss is returned.
        loss_of = jit_once(lambda *given, step=step: step(*given)[1]["loss"])
        loss.append(loss_of(state, batch, jax.random.key(0)))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    main, *rest = (float(cross_entropy(given, labels).mean()) for given in (logits, *others))
    assert loss[0] == pytest.approx(main, rel=1e-4)
    assert loss[1] == pytest.approx(main + 0.5 * sum(rest), rel=1e-4)


def test_pyramid_bins_that_do_not_divide_the_map():
    x = random_images(1, 5, 7, 2)
    got = segmentation.pool(x, 3)
    np.testing.assert_allclose(got[0, 1, 2], x[0, 1:4, 4:7].mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(segmentation.pool(x, 1)[0, 0, 0], x[0].mean((0, 1)), rtol=1e-5)


@pytest.mark.slow
def test_segmentation_is_the_same_in_both_forms():
    found = segmentation.run(steps=4, size=32, batch=4)
    assert found["pixel_agreement"] > 0.999
    assert found["miou_fused"] == pytest.approx(found["miou_train_form"], abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"output_stride": "8"}, "output_stride='8': must be a positive integer"),
        ({"output_stride": 8, "dilated_layers": "1"}, "dilated_layers='1': must be a positive"),
        ({"groups": 0}, "groups=0"),
        ({"se_reduction": -1}, "se_reduction=-1"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"depths": 3}, "depths=3: must be a tuple"),
        ({"grouped_layers": 2}, "grouped_layers=2"),
        ({"frozen": (3,)}, "must be a tuple of regular expressions"),
        ({"dilated_layers": 3}, "set output_stride too"),
        ({"output_stride": 8, "dilated_layers": 0}, "dilated_layers=0"),
        ({"output_stride": 8, "dilated_layers": 10}, "must be from 1 to 9"),
        ({"output_stride": 8, "widths": (16, 16, 24, 24, 32)}, "its width must differ"),
        ({"frozen": ("stage9_.*",)}, "'stage9_.*' matches no block; the blocks are stage0_block0"),
        ({"frozen": ("stage[",)}, "is not a valid regular expression"),
        ({"frozen": "stage0_.*"}, "must be a tuple"),
        ({"dilation": 2}, "unknown override 'dilation'"),
        ({"name": "repvgg_plus_l2pse", "depths": (1, 1, 1, 1, 1)}, "2 blocks in stage 3"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(overrides, says):
    with pytest.raises(rj.UsageError, match=says):
        tiny(**overrides)


@pytest.mark.medium
def test_a_stage_without_its_stride_computes_every_pixel_of_the_strided_one():
    strided, variables = tiny(depths=(1, 1, 1, 1, 1))
    dense, _ = tiny(depths=(1, 1, 1, 1, 1), output_stride=16)
    # Without dilation, the last stage would be the strided stage at twice the resolution.
    same = dense.clone(dilated_layers=None, output_stride=None, strides=(2, 2, 2, 2, 1))
    x = random_images(1, 64, 64, 3)
    expected, all_pixels = (
        jit_once(each.features)(variables, x)[0][-1] for each in (strided, same)
    )
    assert relative_error(expected, all_pixels[:, ::2, ::2]) < 1e-5
    assert dense.blocks()["stage4_block0"].dilation == 2

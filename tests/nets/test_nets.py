"""All variants by name: exact counts, plans, and error messages of `create`."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.nets import abstract
from repvgg_jax.runtime.compilation import jit_once

# Exact counts, computed by hand from the published architectures, with 1000 classes at 224 pixels.
COUNTS = json.loads((Path(__file__).parents[1] / "data" / "counts.json").read_text())
SMALL = ("repvgg_a0", "repvgg_b1g4")  # with groups of one and of four


def test_every_published_variant_has_a_name():
    assert set(COUNTS) == set(rj.list_models("repvgg_*"))
    assert rj.list_models("*b1g?") == ["repvgg_b1g2", "repvgg_b1g4"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SMALL else pytest.mark.medium) for name in COUNTS],
)
def test_counts_are_exact(name):
    net, expected = rj.create(name), COUNTS[name]
    train_form = abstract(net)
    plain = net.clone(block="fused")
    fused = jax.eval_shape(lambda v: rj.fuse(net, v)[1], train_form)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fused) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract(plain)
    ), "the fused tree must be the plain net's own"
    found = {
        "params_train_form": count_parameters(train_form),
        "params_fused": count_parameters(fused),
        "batch_stats": sum(leaf.size for leaf in jax.tree.leaves(train_form["batch_stats"])),
        "macs_train_form": count_macs(net, train_form),
        "macs_fused": count_macs(plain, fused),
    }
    assert found == expected


@pytest.mark.parametrize(
    ("name", "identities"), [("repvgg_a0", 17), ("repvgg_b1g4", 23), ("repvgg_d2se", 43)]
)
def test_identity_branch_stands_where_shapes_allow_it(name, identities):
    params = abstract(rj.create(name))["params"]
    assert sum("bn_identity" in block for block in params.values()) == identities


def test_grouped_layers_are_every_second_and_keep_their_width():
    plan = rj.create("repvgg_b2g4").plan()
    grouped = [index for index, spec in enumerate(plan) if spec.groups == 4]
    assert grouped == list(range(2, 27, 2))
    assert all(plan[index].strides == 1 for index in grouped)
    assert all(plan[i].features == plan[i - 1].features for i in grouped)


def test_strides_are_fields():
    net = rj.create("repvgg_a0", strides=[1, 1, 2, 2, 1], widths=(8, 8, 8, 8, 8), num_classes=3)
    variables = abstract(net)
    _, state = jax.eval_shape(
        lambda v, x: net.apply(v, x, capture_intermediates=True, mutable="intermediates"),
        variables,
        jax.ShapeDtypeStruct((2, 32, 20, 3), "float32"),
    )
    last = state["intermediates"]["stage4_block0"]["__call__"][0]
    assert last.shape == (2, 8, 5, 8)


def test_compute_type_leaves_parameters_and_logits_wide():
    net = rj.create("repvgg_a0", dtype="bfloat16")
    variables = abstract(net)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    logits, state = jax.eval_shape(
        lambda v, x: net.apply(v, x, capture_intermediates=True, mutable="intermediates"),
        variables,
        jax.ShapeDtypeStruct((2, 64, 64, 3), "float32"),
    )
    assert logits.dtype == "float32"
    assert state["intermediates"]["stage2_block1"]["__call__"][0].dtype == "bfloat16"


@cache
def initialized(initializer):
    fields = dict(depths=(1, 3), widths=(8, 64), strides=(1, 2), groups=4, num_classes=10)
    net = rj.create("repvgg_a0", **fields, initializer=initializer)
    return net, rj.init(net, jax.random.key(0), 8)["params"]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "variance", "scale"),
    [
        ("default", lambda fan_in, fan_out: 1 / (3 * fan_in), (1.0, 0.0)),
        ("lecun", lambda fan_in, fan_out: 1 / fan_in, (1.0, 0.0)),
        ("he", lambda fan_in, fan_out: 2 / fan_in, (1.0, 0.0)),
        ("timm", lambda fan_in, fan_out: 2 / fan_out, (0.1, 0.1)),
    ],
)
def test_initializers_have_their_variances(name, variance, scale):
    (net, params), (_, before) = initialized(name), initialized(None)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, before)
    jax.tree.map(np.testing.assert_array_equal, params["head"], before["head"])
    kernels = []
    for block, groups in (("stage1_block0", 1), ("stage1_block1", 4), ("stage1_block2", 1)):
        kernel = params[block]["conv_kxk"]["kernel"]
        assert net.blocks()[block].groups == groups
        kh, kw, inputs, features = kernel.shape
        want = variance(kh * kw * inputs, kh * kw * features / groups)
        assert abs(kernel.mean()) < 0.1 * want**0.5
        assert kernel.var() == pytest.approx(want, rel=0.15)
        kernels.append(kernel)
    assert not np.isclose(kernels[0][..., :4, :4], kernels[2][..., :4, :4]).any()
    scales = np.concatenate([params[f"stage1_block{i}"]["bn_kxk"]["scale"] for i in range(3)])
    assert scales.mean() == pytest.approx(scale[0], abs=0.05)
    assert scales.std() == pytest.approx(scale[1], abs=0.03)


@pytest.mark.medium
def test_an_initializer_is_no_more_than_a_start():
    net = rj.create("repvgg_a0", num_classes=4, depths=(1, 2), widths=(4, 4), strides=(1, 1))
    other = net.clone(initializer="timm")
    variables = rj.init(other, jax.random.key(0), 8)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    expected = jit_once(net.apply)(variables, images)
    np.testing.assert_array_equal(jit_once(other.apply)(variables, images), expected)
    plain, fused = rj.fuse(other, variables)
    rj.init(plain, jax.random.key(0), 8)  # a fused net without BatchNorms can be initialized
    got = jit_once(plain.apply)(fused, images)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"initializer": "kaiming"}, "choose from default, lecun, he, timm"),
        ({"initializer": "he", "block": "dbb"}, "block dbb has its own initialization"),
        ({"name": "repvgg_b1g3"}, "did you mean repvgg_b1g"),
        ({"block": "repvg"}, "did you mean repvgg"),
        ({"num_clases": 10}, "did you mean num_classes"),
        ({"dtype": "int8"}, "float32, bfloat16"),
        ({"widths": (8, 8)}, "must each have one entry per stage, but have 5, 2 and 5"),
        ({"depths": ()}, "depths=.*: must be a tuple with one entry per stage"),
        ({"strides": 2}, "strides=2: must be a tuple with one entry per stage"),
        ({"widths": (8, 8, 8, 8, 0)}, "must be positive integers"),
        ({"groups": 5}, "stage1_block1: groups=5 must divide"),
        ({"branches": ("3x3",)}, "a tuple of names in"),
        ({"block": FusedConv}, "must be a name in BLOCKS"),
        ({"block": "mobileone", "copies": 0}, "copies=0"),
        ({"kernel_size": 4}, "must be odd"),
    ],
)
def test_a_wrong_request_names_the_right_one(overrides, says):
    with pytest.raises(rj.UsageError, match=says):
        net = rj.create(overrides.pop("name", "repvgg_a0"), **overrides)
        abstract(net)

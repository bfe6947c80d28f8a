"""The train form and the fused form are the same function, and the tests can detect errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import repvgg_jax as rj
from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.fusion.verify import Agreement, FusionReport, relative_error
from repvgg_jax.nets import abstract
from tests.support.variables import random_images, random_variables, randomised

SMALL = dict(num_classes=7, widths=(16, 16, 16, 24, 24), depths=(1, 1, 1, 3, 1))


def small(name="repvgg_a0", **overrides):
    net = rj.create(name, **{**SMALL, **overrides})
    return net, random_variables(net, seed=2)


def block_error(block, cin, height, width, dtype):
    fields = ("features", "strides", "groups", "kernel_size", "dilation", "dtype")
    plain = FusedConv(**{name: getattr(block, name) for name in fields})

    x = random_images(2, height, width, cin, dtype=dtype)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x))

    @jax.jit
    def error(variables, x):
        kernel, bias = block.fuse(variables["params"], variables["batch_stats"])
        got = plain.apply({"params": {"conv": {"kernel": kernel, "bias": bias}}}, x)
        return relative_error(block.apply(variables, x), got)

    return float(error(randomised(shapes, 1, dtype), x))


blocks = st.fixed_dictionaries(
    {
        "kernel_size": st.sampled_from([3, 5, 7]),
        "dilation": st.sampled_from([1, 2]),
        "strides": st.sampled_from([1, 2]),
        "groups": st.sampled_from([1, 2, 4, 8]),  # 8 is depthwise if cin = 8
        "cin": st.sampled_from([8, 16]),
        "features": st.sampled_from([8, 16]),
        "height": st.integers(1, 12),
        "width": st.integers(1, 12),
        "branches": st.sampled_from(
            [("kxk", "1x1", "identity"), ("kxk", "identity"), ("kxk", "1x1"), ("kxk",), ("1x1",)]
        ),
    }
)


@pytest.mark.medium
@settings(max_examples=25)
@given(blocks, st.sampled_from([("float64", 1e-12), ("float32", 1e-5)]))
def test_a_block_is_its_fused_convolution(case, precision):
    dtype, tolerance = precision
    fields = {key: case[key] for key in case if key not in ("cin", "height", "width")}
    with jax.enable_x64(True):
        block = RepVGGBlock(**fields, dtype=jnp.dtype(dtype).type)
        error = block_error(block, case["cin"], case["height"], case["width"], dtype)
    assert error < tolerance


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "block", "size"),
    [
        ("repvgg_a0", "repvgg", (32, 48)),
        ("repvgg_a0", "plain", (33, 17)),
        ("repvgg_b1g4", "repvgg", (33, 17)),
        ("repvgg_d2se", "repvgg", (32, 48)),
    ],
)
def test_nets_fuse_to_the_same_function(name, block, size):
    net, variables = small(name, block=block)
    report = rj.verify(net, variables, random_images(16, *size, 3))
    assert set(report.blocks) == set(net.blocks())
    assert report.max_relative_error < 1e-5
    assert report.top1_agreement == 1.0
    assert abs(report.logit_kl) < 1e-6


def test_fused_tree_is_the_plain_nets_own_and_fusing_again_changes_nothing():
    net, variables = small("repvgg_b1g4")
    plain, fused = rj.fuse(net, variables)
    own = abstract(plain)
    assert jax.tree.structure(own) == jax.tree.structure(fused)
    again, fused_again = rj.fuse(plain, fused)
    assert again == plain
    jax.tree.map(np.testing.assert_array_equal, fused_again, fused)


@pytest.mark.medium
def test_fuse_is_pure_jittable_and_differentiable():
    net, variables = small(depths=(1, 2), widths=(16, 16), strides=(2, 2))
    before = jax.tree.map(np.array, variables)
    fused = rj.fuse(net, variables)[1]
    jitted = jax.jit(lambda v: rj.fuse(net, v)[1])(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), jitted, fused)

    x = random_images(4, 32, 32, 3)
    plain = net.clone(block="fused")
    through_fuse = jax.jit(jax.grad(lambda v: (plain.apply(rj.fuse(net, v)[1], x) ** 2).mean()))(
        variables
    )
    direct = jax.jit(jax.grad(lambda v: (net.apply(v, x) ** 2).mean()))(variables)
    for a, b in zip(jax.tree.leaves(through_fuse), jax.tree.leaves(direct), strict=True):
        assert relative_error(b, a) < 1e-3
        assert float(jnp.abs(b).max()) > 0


def test_folding_is_wide_whatever_the_compute_type():
    net, variables = small(dtype="bfloat16", depths=(1, 2), widths=(16, 16), strides=(2, 2))
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), variables)
    fused = rj.fuse(net, narrow)[1]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(fused["params"]["stage0_block0"])} == {
        "float32"
    }
    report = rj.verify(net, variables, random_images(8, 32, 32, 3))
    assert report.max_relative_error < 1e-5 < report.deployed.relative_error < 0.5


@pytest.mark.parametrize(
    ("of", "says"),
    [
        ({"depths": (1, 1, 1, 2, 1)}, r"missing nothing .* unexpected .*stage3_block2"),
        ({"depths": (1, 1, 1, 4, 1)}, r"missing .*stage3_block3.* unexpected nothing"),
        ({"block": "plain"}, r"missing nothing .* unexpected .*stage0_block0/bn_1x1"),
    ],
)
def test_what_is_not_the_nets_is_refused_by_name(of, says):
    _, variables = small()
    with pytest.raises(ValueError, match=says):
        rj.fuse(small(**of)[0], variables)


def test_a_report_has_the_errors_in_one_column():
    agreement = Agreement(0.0, 1.0, 0.0)
    report = FusionReport({"stem": 1e-7, "stage1_block1_depthwise": 2e-7}, agreement, agreement)
    first, second, *logits = str(report).splitlines()
    assert (first.split(), second.split()) == (
        ["stem", "1.0e-07"],
        ["stage1_block1_depthwise", "2.0e-07"],
    )
    assert len(first) == len(second)
    assert {line.index("0.0e+00") for line in logits} == {first.index("1.0e-07")}


def test_images_that_are_not_finite_and_empty_batches_verify_nothing():
    net = rj.create("repvgg_a0", num_classes=2, depths=(1,), widths=(8,), strides=(2,))
    images, variables = random_images(2, 8, 8, 3), random_variables(net, 0, 8)
    with pytest.raises(rj.UsageError, match="images have values that are not finite"):
        rj.verify(net, variables, images.at[0, 0, 0, 0].set(np.nan))
    with pytest.raises(rj.UsageError, match="images are an empty batch"):
        rj.verify(net, variables, images[:0])


def test_verify_names_the_block_that_differs():
    net, variables = small()
    plain, fused = rj.fuse(net, variables)
    broken = fused["params"]["stage3_block1"]["conv"]
    fused["params"]["stage3_block1"] = {"conv": broken | {"kernel": broken["kernel"] * 1.01}}
    report = rj.verify(net, variables, random_images(8, 32, 32, 3), (plain, fused))
    assert report.worst_block == "stage3_block1"
    assert sum(error > 1e-4 for error in report.blocks.values()) == 1
    fused["params"]["stage3_block1"] = {"conv": broken | {"bias": broken["bias"] * jnp.nan}}
    assert (
        rj.verify(net, variables, random_images(8, 32, 32, 3), (plain, fused)).max_relative_error
        == jnp.inf
    )


@pytest.mark.medium
def test_a_net_of_5x5_kernels_fuses():
    net, variables = small(kernel_size=5, depths=(1, 2), widths=(16, 16), strides=(2, 2))
    report = rj.verify(net, variables, random_images(8, 17, 16, 3))
    assert report.max_relative_error < 1e-5
    assert rj.fuse(net, variables)[1]["params"]["stage1_block1"]["conv"]["kernel"].shape[0] == 5


def test_squeeze_excite_stands_before_the_relu_and_averages_all_of_the_map():
    net, variables = small("repvgg_d2se", depths=(1,), widths=(32,), strides=(1,))
    wide, params = random_images(4, 6, 10, 3), variables["params"]
    x = net.blocks()["stage0_block0"].apply(
        {name: tree["stage0_block0"] for name, tree in variables.items()}, wide
    )
    se = params["stage0_block0_se"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"][None]

    hidden = jax.nn.relu(dense(x.mean((1, 2)), se["squeeze"]))
    gate = jax.nn.sigmoid(dense(hidden, se["excite"]))
    pooled = jax.nn.relu(x * gate[:, None, None]).mean((1, 2))
    expected = dense(pooled, params["head"])
    assert relative_error(expected, net.apply(variables, wide)) < 1e-5

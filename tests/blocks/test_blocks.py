"""The contract of blocks, over all of the registry: a new entry is tested by being there."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.bench.counting import count_macs, count_parameters
from repvgg_jax.blocks import dirac, doconv, expandnet, orepa
from repvgg_jax.blocks.base import Block
from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.registry import BLOCKS, Reparam, fuse_block
from repvgg_jax.fusion.verify import relative_error
from tests.support.variables import random_images, random_variables, randomised

TRAIN_FORMS = [name for name in BLOCKS if name != "fused"]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
# cin, features, strides, groups, kernel_size, dilation, (height, width), dtype: each value of each
# at least once with each block, the depthwise and the stem's among them.
CASES = [
    (8, 8, 1, 1, 3, 1, (7, 6), "float64"),
    (8, 16, 2, 2, 3, 1, (8, 5), "float32"),
    (8, 8, 1, 8, 5, 2, (6, 7), "float64"),
    (3, 8, 2, 1, 5, 1, (5, 8), "float64"),
    (8, 8, 1, 8, 3, 1, (1, 3), "float32"),
    (16, 8, 1, 4, 1, 1, (4, 5), "float64"),
]
EVERY_CASE = [
    (8, 8, strides, groups, 3, dilation, size, "float64")
    for strides, groups, dilation, size in itertools.product(
        (1, 2), (1, 2, 8), (1, 2), ((6, 6), (5, 8))
    )
]


def build(name, cin, features, strides, groups, kernel_size, dilation, size, dtype):
    block = BLOCKS[name].block(
        features=features,
        strides=strides,
        groups=groups,
        kernel_size=kernel_size,
        dilation=dilation,
        dtype=jnp.dtype(dtype).type,
    )
    x = random_images(3, *size, cin, dtype=dtype)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x))
    return block, {"batch_stats": {}} | randomised(shapes, 1, dtype), x


def check_block(name, case):
    with jax.enable_x64(True):
        block, variables, x = build(name, *case)
        fields = {field: getattr(block, field) for field in Block.__dataclass_fields__}
        plain = FusedConv(**{k: v for k, v in fields.items() if k not in ("parent", "name")})

        @jax.jit
        def errors(variables, x):
            f = lambda x: block.apply(variables, x)  # noqa: E731
            affine = relative_error(f(x[:1] + x[1:2] - x[2:]), (f(x)[0] + f(x)[1] - f(x)[2])[None])
            try:
                kernel, bias = fuse_block(block, variables["params"], variables["batch_stats"])
            except rj.UsageError:
                return affine, None
            fused = {"params": {"conv": {"kernel": kernel, "bias": bias}}}
            return affine, relative_error(f(x), plain.apply(fused, x))

        affine, fusing = errors(variables, x)
    tolerance = TOLERANCE[case[-1]]
    if fusing is None:
        assert affine > 1e-2, f"{name} is affine, so it can be fused"
    else:
        assert affine < 10 * tolerance
        assert fusing < tolerance


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_affine_and_is_its_fused_convolution(name, case):
    check_block(name, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_its_fused_convolution_over_all_of_the_space(name):
    for case in EVERY_CASE:
        check_block(name, case)


# A constant before a BatchNorm: the paper's structure has it, and training cannot see it.
UNSEEN = {("qarepvgg", "bn_kxk/bias")}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_has_a_gradient(name):
    block, variables, x = build(name, 8, 8, 1, 2, 3, 1, (6, 6), "float32")
    direction = random_images(3, 6, 6, 8, seed=7)

    @jax.jit
    def gradient(params):
        def loss(params):
            trees = {"params": params, "batch_stats": variables["batch_stats"]}
            y, _ = block.apply(trees, x, True, mutable=["batch_stats"])
            return (y * direction).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree.leaves_with_path(gradient(variables["params"])):
        parameter = jax.tree_util.keystr(path, simple=True, separator="/")
        moves = float(jnp.abs(leaf).max()) > 1e-4
        assert moves != ((name, parameter) in UNSEEN), parameter


def test_a_block_that_cannot_be_fused_says_why():
    net = rj.create("repvgg_a0", block="relu_in_branch", depths=(1,), widths=(8,), strides=(2,))
    with pytest.raises(rj.UsageError, match="not affine"):
        rj.fuse(net, random_variables(net, 1, 8))


@pytest.mark.parametrize("name", [n for n in TRAIN_FORMS if n != "relu_in_branch"])
def test_a_net_of_each_block_fuses_to_the_deploy_nets_own_tree(name):
    net = rj.create(
        "repvgg_d2se", block=name, num_classes=5, depths=(1, 2), widths=(16, 16), strides=(2, 2)
    )
    variables = random_variables(net, 2, 16)
    plain, fused = rj.fuse(net, variables)
    own = jax.eval_shape(lambda key: rj.init(plain, key), jax.random.key(0))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, fused)
    report = rj.verify(net, variables, random_images(16, 17, 16, 3))
    assert report.max_relative_error < 1e-5
    assert report.top1_agreement == 1.0


# Exact counts of RepVGG-B0 with each block, by arithmetic over the papers' structures; the last
# three are this code's own, by which a change would be seen.
B0_PARAMETERS = {
    ("plain", ()): 14345512,
    ("repvgg", (("branches", ("kxk", "identity")),)): 14354856,
    ("repvgg", (("branches", ("kxk", "1x1")),)): 15808616,
    ("repvgg", ()): 15817960,
    ("identity_without_bn", ()): 15808616,
    ("post_addition_bn", ()): 15795688,
    ("qarepvgg", ()): 15808616,
    ("dirac", ()): 14358440,
    ("trivial", ()): 14345512,
    ("acb", ()): 23072424,
    ("dbb", ()): 31526903,
    ("csla", ()): 15813288,
    ("expandnet", ()): 225991025,
    ("doconv", ()): 14765659,
    ("orepa", ()): 44928649,
}


@pytest.mark.parametrize(("block", "options"), B0_PARAMETERS)
def test_parameters_of_b0_are_exact(block, options):
    net = rj.create("repvgg_b0", block=block, **dict(options))
    shapes = jax.eval_shape(lambda key: rj.init(net, key), jax.random.key(0))
    assert count_parameters(shapes) == B0_PARAMETERS[block, options]


MOBILEONE = {  # train form, fused, multiply-adds of the fused form at 224 pixels
    "mobileone_s0": (5293272, 2078504, 275110400),
    "mobileone_s1": (4825192, 4764840, 825057024),
    "mobileone_s2": (7884648, 7808168, 1298426496),
    "mobileone_s3": (10170600, 10078312, 1895790592),
    "mobileone_s4": (14951248, 14838352, 2979269760),
}


@pytest.mark.parametrize("name", MOBILEONE)
def test_mobileone_has_its_papers_counts(name):
    net = rj.create(name)
    shapes = jax.eval_shape(lambda key: rj.init(net, key), jax.random.key(0))
    plain = net.clone(block=FusedConv)
    fused = jax.eval_shape(lambda v: rj.fuse(net, v)[1], shapes)
    found = count_parameters(shapes), count_parameters(fused), count_macs(plain, fused)
    assert found == MOBILEONE[name]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mobileone_s0", {"depths": (1, 1, 2, 1, 1), "widths": (8, 8, 16, 16, 24)}),
        ("mobileone_s4", {"depths": (1, 1, 1, 6, 1), "widths": (16, 16, 16, 16, 24)}),
        ("mobileone_s1", {"depths": (1, 1), "widths": (8, 16), "strides": (2, 1), "block": "dbb"}),
        (
            "residual_reorg_b0",
            {"depths": (1, 1, 2, 1), "widths": (8, 8, 16, 24), "strides": (1, 2, 2, 2)},
        ),
    ],
)
def test_other_nets_fuse_block_by_block(name, overrides):
    net = rj.create(name, num_classes=5, **overrides)
    variables = random_variables(net, 3)
    x = random_images(8, 32, 40, 3)
    report = rj.verify(net, variables, x)
    assert set(report.blocks) == set(net.plan())
    assert report.max_relative_error < 1e-5
    maps, _ = net.features(variables, x)
    for array, info in zip(maps, net.feature_info(), strict=True):
        rows, columns = -(-32 // info.stride), -(-40 // info.stride)
        assert array.shape == (8, rows, columns, info.channels)


def test_residual_reorganisation_keeps_its_shortcuts():
    net = rj.create("residual_reorg_b0")
    plan = net.plan()
    assert sum("shortcut" in name for name in plan) == 3  # where a stage halves the map
    assert sum("shortcut" not in name for name in plan) == 1 + 4 + 6 + 16 + 1


def test_squeeze_excite_of_mobileone_stands_in_the_last_stages_alone():
    net = rj.create("mobileone_s4")
    names = [n for n, spec in net.plan().items() if net.se_hidden(n, spec["features"])]
    late = [f"stage3_block{i}" for i in range(5, 10)] + ["stage4_block0"]
    assert names == [f"{n}_{part}" for n in late for part in ("depthwise", "pointwise")]


def test_the_documented_block_keeps_the_contract(monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "adding_a_block.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 50, "the page promises little to write"
    module = {"__name__": "mean"}
    exec(compile(code, str(page), "exec"), module)
    monkeypatch.setitem(BLOCKS, "mean", Reparam(module["MeanBlock"], module["fuse_mean"]))
    for case in CASES:
        check_block("mean", case)
    net = rj.create(
        "repvgg_a0", block="mean", num_classes=5, depths=(1,), widths=(8,), strides=(2,)
    )
    report = rj.verify(net, random_variables(net, 1, 8), random_images(4, 8, 8, 3))
    assert report.max_relative_error < 1e-5


def test_dirac_kernels_start_as_a_delta_and_a_tenth_of_unit_filters():
    block = BLOCKS["dirac"].block(features=8, groups=2)
    params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))["params"]
    kernel = np.array(dirac.dirac_kernel(block, params))
    for o in range(8):
        assert kernel[1, 1, o % 4, o] > 0.8  # 1 of the delta, and at most 0.1 beside it
        kernel[1, 1, o % 4, o] -= 1
    np.testing.assert_allclose(np.sqrt((kernel**2).sum((0, 1, 2))), 0.1, rtol=1e-4)


def test_orepas_kernel_is_the_sum_of_its_layers():
    with jax.enable_x64(True):
        block, variables, x = build("orepa", 8, 8, 1, 2, 3, 1, (6, 6), "float64")
        p, groups = variables["params"], 2

        def run(y, kernel, groups=groups, padding="VALID"):
            return jax.lax.conv_general_dilated(
                y,
                kernel,
                (1, 1),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        wide = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        window = jnp.ones((3, 3, 1, 8)) / 9
        h, half = np.arange(3) + 0.5, np.arange(4) + 1
        waves = np.cos(np.pi * h[:, None] * half / 3)  # [place, frequency]
        bank = np.zeros((3, 3, 1, 8))
        bank[..., 0, :4], bank[..., 0, 4:] = waves[:, None], waves[None]
        layers = [
            run(wide, p["origin_kernel"]),
            run(run(wide, p["average_kernel"]), window, 8),
            run(run(wide, p["prior_kernel"]), bank, 8),
            run(wide + run(wide, p["expand_kernel"]), p["kxk_kernel"]),
            run(x, p["pointwise_kernel"]),
            run(run(wide, p["depthwise_kernel"], 8), p["separable_kernel"]),
        ]
        expected = sum(y * v for y, v in zip(layers, p["branch_scales"], strict=True))
        got = block.conv_with(x, orepa.generate(block, p))
        assert relative_error(expected, got) < 1e-6  # the bank is kept in float32
    fresh = orepa.OREPABlock(8).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))["params"]
    np.testing.assert_allclose(fresh["branch_scales"][:, 0], [0.25, 0.25, 0, 0.5, 1, 0.5])
    assert not fresh["expand_kernel"].any()


def test_doconv_composes_a_depthwise_and_a_plain_convolution():
    block, variables, _ = build("doconv", 8, 8, 1, 2, 3, 1, (6, 6), "float32")
    p = variables["params"]
    kernel = np.zeros((3, 3, 4, 8))
    for o, i, t, s in itertools.product(range(8), range(4), range(9), range(9)):
        own = float(t == s) + p["depthwise_kernel"][o // 4 * 4 + i, t, s]
        kernel[t // 3, t % 3, i, o] += own * p["kernel"][s // 3, s % 3, i, o]
    np.testing.assert_allclose(doconv.doconv_kernel(block, p), kernel, rtol=1e-4, atol=1e-5)


def test_the_models_own_block_by_name_is_the_models_own():
    assert rj.create("mobileone_s1", block="mobileone") == rj.create("mobileone_s1")
    with pytest.raises(rj.UsageError, match="se_reduction"):
        rj.create("mobileone_s4", depths=(1, 1), widths=(8, 8), strides=(2, 2))


def test_the_border_of_a_diverse_branch_carries_no_gradient():
    block, variables, x = build("dbb", 8, 8, 1, 1, 3, 1, (1, 1), "float32")

    def loss(bias):
        params = variables["params"]
        params = params | {"bn_before_kxk": params["bn_before_kxk"] | {"bias": bias}}
        # Of one pixel, the kxk sees its centre and eight taps of border.
        return block.apply(variables | {"params": params}, x).sum()

    bias = variables["params"]["bn_before_kxk"]["bias"]
    kernel = variables["params"]["conv_kxk"]["kernel"]
    stats, params = variables["batch_stats"]["bn_kxk"], variables["params"]["bn_kxk"]
    scale = params["scale"] / np.sqrt(stats["var"] + 1e-5)
    expected = 3 * kernel[1, 1] @ scale  # the centre tap alone, of three images
    np.testing.assert_allclose(jax.grad(loss)(bias), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["expandnet", "expandnet_ck"])
@pytest.mark.parametrize("case", [(3, 8, 2, 1, 5, 1), (8, 8, 1, 2, 5, 2), (8, 16, 2, 1, 3, 1)])
def test_an_expanded_convolution_is_its_layers_one_after_the_other(name, case):
    strides, groups, dilation = case[2], case[3], case[5]

    def one_by_one(x, kernels):
        """Padded once; the stride is the last kxk's, and a 1x1 after it has nothing to skip."""
        margin = dilation * (case[4] // 2)
        y = jnp.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        last = max(index for index, kernel in enumerate(kernels) if kernel.shape[0] > 1)
        for index, kernel in enumerate(kernels):
            y = jax.lax.conv_general_dilated(
                y,
                kernel,
                (strides if index == last else 1,) * 2,
                "VALID",
                rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
        return y

    with jax.enable_x64(True):
        block, variables, x = build(name, *case, (9, 8), "float64")
        params = variables["params"]
        kernels = [params[f"conv{i}"]["kernel"] for i in range(len(params) - 1)]
        assert len(kernels) == (3 if name == "expandnet" else block.kernel_size // 2)

        def in_one(x, kernels):
            trees = {f"conv{i}": {"kernel": kernel} for i, kernel in enumerate(kernels)}
            return block.conv_with(x, expandnet.chained(block, trees).kernel)

        expected, pull = jax.vjp(one_by_one, x, kernels)
        got, pull_in_one = jax.vjp(in_one, x, kernels)
        assert relative_error(expected, got) < 1e-12
        direction = random_images(*expected.shape, seed=3, dtype="float64")
        gradients = (jax.tree.leaves(pulled(direction)) for pulled in (pull, pull_in_one))
        pairs = zip(*gradients, strict=True)
        assert all(relative_error(theirs, ours) < 1e-12 for theirs, ours in pairs)

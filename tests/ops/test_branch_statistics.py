"""Branch statistics from input moments: values, statistics and gradients of the branches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repvgg_jax as rj
from repvgg_jax.bench.hlo import traffic
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.ops import onednn
from repvgg_jax.ops.branch_statistics import input_moments_are_faster
from repvgg_jax.runtime.devices import compiling_for
from repvgg_jax.runtime.mesh import batch_sharding, make_mesh, replicated
from tests.support.variables import random_images, random_variables, randomised

# (cin, features, strides, groups, kernel size, dilation)
SHAPES = [
    (8, 8, 1, 1, 3, 1),
    (8, 12, 1, 1, 3, 1),
    (8, 16, 2, 1, 3, 1),
    (8, 8, 2, 4, 3, 1),
    (8, 8, 1, 2, 5, 1),
    (8, 8, 1, 8, 3, 2),
    (8, 8, 1, 1, 1, 1),
]
BRANCHES = [
    branches
    for count in (1, 2, 3)
    for branches in itertools.combinations(("kxk", "1x1", "identity"), count)
]
ALL = [
    case
    for case in itertools.product(SHAPES, BRANCHES, (None, 2))
    if "kxk" in case[1] or "1x1" in case[1]
]
# Each shape with all branches, and each set of branches once; testing all combinations is slow.
CASES = [(shape, BRANCHES[-1], (None, 2)[i % 2]) for i, shape in enumerate(SHAPES)]
CASES += [(SHAPES[0], branches, 2) for branches in BRANCHES[:-1] if branches != ("identity",)]


def trained(block, variables, x, dz):
    """Returns the output, new statistics, and gradients of parameters and input in training."""

    def forward(params, x):
        variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
        return block.apply(variables_now, x, train=True, mutable=["batch_stats"])

    z, pull, updated = jax.vjp(forward, variables["params"], x, has_aux=True)
    return z, updated["batch_stats"], pull(dz)


def both_forms(shape, branches, group_size, dtype="float64", seed=2, **fields):
    cin, features, strides, groups, size, dilation = shape
    block = RepVGGBlock(
        features,
        strides,
        groups,
        size,
        dilation,
        dtype=jnp.dtype(dtype),
        bn_group_size=group_size,
        bn_epsilon=1e-2,
        branches=branches,
    )
    forms = [
        block.clone(branch_statistics="batch", conv_algorithm="xla"),
        block.clone(**{"branch_statistics": "moments", "conv_algorithm": "xla"} | fields),
    ]
    x = random_images(4, 6, 7, cin, seed=1, dtype=dtype) + 0.3
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    variables = randomised(shapes, seed, dtype)
    dz = random_images(4, -(-6 // strides), -(-7 // strides), features, seed=3, dtype=dtype)
    return [jax.jit(trained, static_argnums=0)(form, variables, x, dz) for form in forms]


def assert_close(result, expected, tolerance):
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, right), left in zip(paths, jax.tree.leaves(result), strict=True):
        scale = np.abs(right).max() + 1e-3
        error = np.abs(left - right).max() / scale
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error}"


def assert_forms_agree(case, dtype, tolerance):
    with jax.enable_x64(True):
        expected, result = both_forms(*case, dtype=dtype)
    assert_close(result, expected, tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_moments_give_values_statistics_and_gradients_of_the_branches(case):
    assert_forms_agree(case, "float64", 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_moments_give_the_same_for_every_shape_and_set_of_branches(case):
    assert_forms_agree(case, "float64", 1e-10)


# Without the depthwise shape: a kernel of one element has no gradient through its BatchNorm.
@pytest.mark.medium
@pytest.mark.parametrize("case", CASES[:5] + CASES[7:], ids=str)
def test_moments_are_as_exact_in_float32(case):
    assert_forms_agree(case, "float32", 1e-5)


@pytest.mark.medium
def test_narrow_inputs_far_from_zero_lose_no_more_than_by_the_branches():
    """The mean is subtracted with the same rounding of the kernel as in the product."""
    block = RepVGGBlock(32, dtype=jnp.bfloat16, branches=("1x1", "identity"))
    x = jnp.asarray(random_images(8, 8, 8, 32, seed=1) + 30.0)
    variables = randomised(jax.eval_shape(block.init, jax.random.key(0), x), 2)
    kernel = variables["params"]["conv_1x1"]["kernel"]
    variables["params"]["conv_1x1"]["kernel"] = kernel - kernel.mean(2, keepdims=True)
    variables = jax.tree.map(jnp.asarray, variables)

    def sum_of(form, dtype):
        net = block.clone(branch_statistics=form, conv_algorithm="xla", dtype=dtype)
        return net.apply(variables, x, train=True, mutable=["batch_stats"])[0].astype(jnp.float32)

    exact = sum_of("batch", jnp.float32)
    errors = {
        form: np.abs(sum_of(form, jnp.bfloat16) - exact).max() for form in ("batch", "moments")
    }
    assert errors["moments"] < 2 * errors["batch"]


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_onednn_gives_the_same(case):
    if reason := onednn.unavailable():
        pytest.skip(reason)
    # The gradient of a depthwise 1x1 before a BatchNorm is almost zero for most parameters, which
    # would amplify oneDNN's rounding errors. With these parameters it is far from zero.
    expected, result = both_forms(*case, dtype="float32", seed=10, conv_algorithm="onednn")
    assert_close(result, expected, 1e-5)


@pytest.mark.medium
def test_covariances_are_wide_for_narrow_images():
    """In bfloat16, squares of images with mean 16 and deviation 1 would lose the variance."""
    x = jnp.asarray(random_images(4, 16, 16, 8) + 16, jnp.bfloat16)
    block = RepVGGBlock(8, dtype=jnp.bfloat16, branch_statistics="moments", conv_algorithm="xla")
    variables = block.init(jax.random.key(0), x)
    _, updated = block.apply(variables, x, train=True, mutable=["batch_stats"])
    found = (updated["batch_stats"]["bn_identity"]["var"] - 0.9) / 0.1
    np.testing.assert_allclose(found, np.float64(x).var((0, 1, 2)), rtol=1e-3)


# --- Devices --------------------------------------------------------------------------------------


def step_on(devices, group_size):
    net = rj.create(
        "repvgg_a0",
        num_classes=10,
        depths=(1, 2),
        widths=(8, 16),
        strides=(2, 1),
        branch_statistics="moments",
        bn_group_size=group_size,
    )
    mesh = make_mesh(data=devices, devices=jax.devices()[:devices])
    variables = jax.device_put(random_variables(net, 0, 8), replicated(mesh))
    images = jax.device_put(random_images(32, 8, 8, 3), batch_sharding(mesh))

    def loss(params, images):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, updated = net.apply(given, images, train=True, mutable=["batch_stats"])
        return (logits**2).mean(), updated

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    compiled = gradient.lower(variables["params"], images).compile()
    return jax.device_get(compiled(variables["params"], images)), compiled.as_text()


@pytest.mark.medium
@pytest.mark.parametrize("group_size", [None, 8])
def test_four_devices_compute_what_one_does(group_size):
    (expected, _), (result, _) = step_on(1, group_size), step_on(4, group_size)
    # Sums over the batch have another order.
    assert_close(result, expected, 1e-5)


@pytest.mark.medium
def test_moments_of_groups_within_a_device_need_no_collective():
    """Ignores the all-reduces of gradients, which the net with global statistics has too."""
    counts = {}
    for size in (None, 8):
        collectives = traffic(step_on(4, size)[1]).collectives
        counts[size] = sum(count for count, _ in collectives.values())
    assert counts[8] <= 2 < counts[None]


def test_moments_are_chosen_on_one_cpu_by_xla_if_pixels_outnumber_channels():
    many, few = jnp.ones((64, 32, 32, 16)), jnp.ones((64, 4, 4, 256))
    assert not input_moments_are_faster(many, 1, "xla")  # this process has four devices
    with compiling_for(jax.devices()[:1]):
        assert input_moments_are_faster(many, 1, "xla")
        assert input_moments_are_faster(many, 1, "auto") == bool(onednn.unavailable())
        assert input_moments_are_faster(many.astype(jnp.bfloat16), 1, "auto")
        assert not input_moments_are_faster(few, 1, "xla")
        assert not input_moments_are_faster(jnp.ones((64, 8, 8, 256)), 2, "xla")


@pytest.mark.parametrize("field", ["branch_statistics", "conv_algorithm"])
def test_an_unknown_value_is_refused_with_the_known_ones(field):
    with pytest.raises(rj.UsageError, match=f"{field}='fast': choose from auto"):
        rj.create("repvgg_a0", **{field: "fast"})

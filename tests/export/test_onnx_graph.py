"""ONNX graphs of operations that nets consist of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import repvgg_jax as rj
from repvgg_jax.layers.norm import local_response_norm
from repvgg_jax.layers.pool import adaptive_mean_pool, max_pool
from repvgg_jax.ops.convolution import convolve
from tests.support.onnx_models import converted, operators, relative_error

pytest.importorskip("onnxruntime")
DRAW = np.random.default_rng(0).standard_normal
KERNEL = DRAW((3, 3, 3, 6), np.float32)
CHANNELS = DRAW((4, 1, 1, 1, 6), np.float32)
GROUPED = DRAW((3, 3, 2, 9), np.float32)
DENSE = DRAW((6, 5), np.float32)


def flat(x):
    return x.reshape(x.shape[0], -1)


def conv(images, **options):
    return convolve(images, KERNEL, jnp.asarray(CHANNELS[0].ravel()), algorithm="xla", **options)


def pool_without_padding(x):
    return nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False)


def window_sums(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def batch_norm(x):
    # Small variances, so that the result depends on epsilon.
    scale = lax.rsqrt(CHANNELS[1] ** 2 * 1e-5 + 1e-5) * CHANNELS[2]
    return (x - CHANNELS[0]) * scale + CHANNELS[3]


def dilated_pool(x):
    ones = (1, 1, 1, 1)
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), ones, "VALID", window_dilation=(1, 2, 2, 1)
    )


def multiplied(x):
    return lax.reduce(x, 1.0, lambda a, b: a * b + 0.0, (3,))


def squeeze_excite(x):
    y = nn.relu(x.mean((1, 2), keepdims=True) @ (DENSE @ DENSE.T) + CHANNELS[1])
    return x * nn.sigmoid(y @ DENSE @ DENSE.T)


def shuffle(x):
    x = x.reshape(*x.shape[:-1], 3, 2)
    return jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], 6)


def halves(x):
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([nn.silu(second), jnp.square(first), x[..., 1:4]], axis=-1)


def grouped(x):
    return convolve(x, GROUPED, groups=3, dilation=2, algorithm="xla")


def shifted(x):
    return jnp.pad(x[:, 1:, ::2], [(0, 0), (0, 1), (2, 0), (0, 0)], constant_values=0.5)


CASES = {
    "same_padding": (lambda x: conv(x, strides=2, padding="SAME"), {"Conv": 1}),
    "symmetric_padding": (lambda x: conv(x, strides=2), {"Conv": 1}),
    "valid": (lambda x: conv(x, strides=3, padding="VALID"), {"Conv": 1}),
    "groups": (lambda x: grouped(conv(x)), {"Conv": 2}),
    "relu": (lambda x: nn.relu(conv(x)), {"Conv": 1, "Relu": 1}),
    "relu6": (lambda x: nn.relu6(conv(x) * 3), {"Conv": 1, "Mul": 1, "Clip": 1}),
    "leaky_relu": (lambda x: nn.leaky_relu(conv(x), 0.1), {"Where": 1}),
    "gelu": (lambda x: nn.gelu(conv(x), approximate=False), {"Erf": 1}),
    "softplus": (lambda x: nn.hard_swish(nn.softplus(conv(x))), {}),
    "batch_norm": (lambda x: batch_norm(nn.relu(conv(x))), {"BatchNormalization": 1, "Sub": 0}),
    "squeeze_excite": (
        lambda x: squeeze_excite(conv(x)),
        {"GlobalAveragePool": 1, "Conv": 4, "Sigmoid": 1, "Mul": 1},
    ),
    "shuffle": (lambda x: grouped(shuffle(conv(x))), {"Conv": 2, "Gather": 1}),
    "halves": (lambda x: halves(conv(x)), {"Split": 1, "Concat": 1, "Slice": 1}),
    "shifted": (lambda x: shifted(conv(x)), {"Slice": 1, "Pad": 1}),
    "max_pool": (lambda x: max_pool(conv(x), 3, 2), {"MaxPool": 1}),
    "last": (lambda x: max_pool(conv(x), 3, 2, "last"), {"MaxPool": 1}),
    "pool_with_padding": (
        lambda x: nn.avg_pool(conv(x), (3, 3), (2, 2), "SAME"),
        {"AveragePool": 1, "Mul": 0, "Div": 0},
    ),
    "pool_without_padding": (
        lambda x: pool_without_padding(conv(x)),
        {"AveragePool": 1, "Mul": 0, "Div": 0},
    ),
    "sums": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        {"AveragePool": 1, "Mul": 1},
    ),
    "means_scaled_before_the_division": (
        lambda x: 0.5 * window_sums(conv(x)) / window_sums(np.ones((1, 8, 8, 1), np.float32)),
        {"AveragePool": 1, "Mul": 1, "Div": 0},
    ),
    "sum_over_ten": (
        lambda x: 3 * conv(x).sum((1, 2), keepdims=True) / 10,
        {"GlobalAveragePool": 1, "Mul": 1, "Div": 0},
    ),
    "adaptive": (lambda x: adaptive_mean_pool(conv(x), 3), {"MatMul": 2}),
    "lrn": (lambda x: local_response_norm(conv(x) * 50, alpha=0.1), {"LRN": 1, "Pow": 0}),
    "mean_of_one_pixel": (lambda x: conv(x[:, :1, :1]).mean((1, 2)), {"Div": 0}),
    "normalize": (lambda x: (x / 255 - 0.4) / 0.3, {"Div": 2, "Sub": 1}),
    "total": (lambda x: conv(x).sum((1, 2, 3)).reshape(-1, 1), {"ReduceSum": 1}),
    "variance": (lambda x: conv(x).var((1, 2)), {"GlobalAveragePool": 2}),
    "broadcast": (
        lambda x: jnp.concatenate(
            [x, jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)], axis=-1
        ),
        {"Expand": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_computes_the_same(name):
    call, expected_operators = CASES[name]
    model, found, expected = converted(lambda _, x: flat(call(x)), {})
    assert relative_error(found, expected) < 2e-6
    counts = operators(model)
    assert {op: counts[op] for op in expected_operators} == expected_operators


def test_rows_of_a_dense_kernel_are_reordered_instead_of_the_map():
    kernel = DRAW((8 * 8 * 6, 5), np.float32)

    def call(variables, images):
        x = nn.relu(flat(nn.relu(conv(images))))
        return x @ variables["params"]["head"]["kernel"] + CHANNELS[0, 0, 0, :, :5]

    model, found, expected = converted(call, {"params": {"head": {"kernel": kernel}}})
    assert relative_error(found, expected) < 2e-6
    assert operators(model) == {"Conv": 1, "Relu": 2, "Flatten": 1, "Gemm": 1}
    assert "head/kernel" in {tensor.name for tensor in model.graph.initializer}


def test_epsilon_is_that_of_the_net():
    model, _, _ = converted(lambda _, x: flat(batch_norm(nn.relu(conv(x)))), {})
    (node,) = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    assert [each.f for each in node.attribute if each.name == "epsilon"] == [0.0]


def test_a_value_with_two_readers_is_not_merged():
    def call(_, x):
        y = convolve(x, KERNEL, algorithm="xla")
        z = nn.relu(y + CHANNELS[0])
        return flat(jnp.concatenate([y, z, jnp.minimum(z, 1)], axis=-1))

    model, found, expected = converted(call, {})
    assert relative_error(found, expected) < 2e-6
    assert operators(model)["Add"] == operators(model)["Min"] == 1


def test_a_scan_is_unrolled():
    kernels = DRAW((3, 6, 6), np.float32)

    def call(variables, images):
        def step(x, kernel):
            return jnp.tanh(x @ kernel), None

        return lax.scan(step, conv(images), variables["kernels"], reverse=True)[0].mean((1, 2))

    model, found, expected = converted(call, {"kernels": kernels})
    assert relative_error(found, expected) < 2e-6
    assert operators(model)["Tanh"] == 3


def test_any_size():
    def call(_, images):
        x = shuffle(nn.relu(conv(images, strides=2)))
        return squeeze_excite(max_pool(x, 3, 2)).mean((1, 2)) @ DENSE

    model, found, expected = converted(call, {}, dynamic_size=True, sides=(13, 22))
    assert relative_error(found, expected) < 2e-6
    sides = model.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param for side in sides] == ["batch", "", "height", "width"]


@pytest.mark.parametrize(
    ("call", "dynamic_size", "message"),
    [
        (lambda x: conv(x, strides=2, padding="SAME"), True, "depend on the size of the image"),
        (lambda x: max_pool(x, 3, 2, "last"), True, "depend on the size of the image"),
        (lambda x: jnp.concatenate([x, jnp.zeros_like(x)], -1), False, "images with a constant"),
        (dilated_pool, False, "pool with dilation"),
        (lambda x: jnp.sort(x, 1), False, "does not know the operation sort of JAX"),
        (lambda x: jnp.sort(x, 1), True, "^ONNX export does not know the operation sort of JAX"),
        (multiplied, False, "does not know the operation reduce of JAX"),
        (lambda x: jnp.einsum("bhwc,bhwd->bcd", x, x), False, "product of two arrays"),
        (lambda x: x + np.arange(2)[:, None, None, None], False, "images of a batch"),
        (lambda x: lax.map(lambda y: y, x), False, "scan over images"),
        (lambda x: jax.image.resize(x, (2, 16, 16, 3), "nearest"), False, "operation"),
    ],
)
def test_what_cannot_be_exported_is_one_line(call, dynamic_size, message):
    with pytest.raises(rj.UsageError, match=message) as caught:
        converted(lambda _, x: flat(call(x)), {}, dynamic_size=dynamic_size, batch=2)
    assert "\n" not in str(caught.value)

"""oneDNN's convolutions equal XLA's: values and gradients, with bias, ReLU and packed kernel."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import repvgg_jax as rj
from repvgg_jax.ops import onednn
from repvgg_jax.ops.convolution import convolve
from tests.support.variables import random_images, random_variables

# (side, cin, features, kernel size, strides, groups, dilation); some layouts pad odd channels.
SHAPES = [
    (9, 16, 32, 3, 1, 1, 1),
    (8, 3, 16, 3, 2, 1, 1),
    (7, 5, 7, 3, 1, 1, 1),
    (8, 16, 16, 1, 2, 1, 1),
    (56, 3, 8, 1, 2, 1, 1),
    (9, 32, 32, 3, 1, 2, 2),
    (9, 16, 16, 5, 1, 16, 1),
]


@pytest.fixture(autouse=True)
def onednn_is_available():
    if reason := onednn.unavailable():
        pytest.skip(reason)


def arrays(side, cin, features, size, groups):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(size, size, cin // groups, features)) / size / (cin // groups) ** 0.5
    bias = rng.normal(size=features)
    x = rng.normal(size=(2, side, side, cin))
    return [jnp.asarray(array, jnp.float32) for array in (x, kernel, bias)]


def assert_close(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("apply_relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, biased, apply_relu):
    side, cin, features, size, strides, groups, dilation = shape
    x, kernel, bias = arrays(side, cin, features, size, groups)
    given = (x, kernel, bias) if biased else (x, kernel)
    geometry = dict(strides=strides, groups=groups, dilation=dilation, apply_relu=apply_relu)

    def both(algorithm):
        run = partial(convolve, **geometry, algorithm=algorithm)
        y, pull = jax.vjp(run, *given)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    expected = both("xla")
    assert expected[0].min() < 0 or apply_relu
    assert_close(both("onednn"), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_constant_kernel_is_packed_while_tracing(shape):
    side, cin, features, size, strides, groups, dilation = shape
    x, kernel, bias = arrays(side, cin, features, size, groups)
    run = partial(convolve, strides=strides, groups=groups, dilation=dilation, apply_relu=True)

    def constant(algorithm):
        forward = partial(run, kernel=kernel, bias=bias, algorithm=algorithm)
        return forward, jax.grad(lambda x: jnp.sin(forward(x)).sum())

    for ours, theirs in zip(constant("onednn"), constant("xla"), strict=True):
        assert_close(jax.jit(ours)(x), theirs(x))
    program = jax.jit(constant("onednn")[0]).lower(x).as_text()
    assert "packed = true" in program
    assert "repvgg_jax.pack" not in program
    as_arguments = jax.jit(partial(run, algorithm="onednn")).lower(x, kernel, bias)
    assert "packed = false" in as_arguments.as_text()


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:2] + SHAPES[5:6], ids=str)
def test_an_exported_program_has_xlas_convolutions_even_if_it_ran_before(shape, constant):
    side, cin, features, size, strides, groups, dilation = shape
    x, kernel, bias = arrays(side, cin, features, size, groups)
    geometry = dict(strides=strides, groups=groups, dilation=dilation, apply_relu=True)

    def loss(x, kernel, bias):
        return jnp.sin(convolve(x, kernel, bias, **geometry, algorithm="onednn")).sum()

    if constant:
        run = jax.jit(jax.value_and_grad(lambda x: loss(x, kernel, bias)))
        given = (x,)
    else:
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        given = (x, kernel, bias)
    expected = run(*given)
    assert "@repvgg_jax." in run.lower(*given).as_text()
    for platform in ("cpu", "cuda", "tpu"):
        program = run.trace(*given).lower(lowering_platforms=(platform,)).as_text()
        assert ("@repvgg_jax." in program) == (platform == "cpu")
    exported = export.export(run, platforms=["cpu", "cuda", "tpu"])(*given)
    assert "@repvgg_jax." not in exported.mlir_module()
    assert_close(exported.call(*given), expected)


def test_a_symbolic_dimension_gets_xlas_convolution():
    x, kernel, bias = arrays(9, 16, 32, 3, 1)
    run = jax.jit(partial(convolve, apply_relu=True, algorithm="onednn"))
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = export.export(run)(images, kernel, bias)
    assert_close(exported.call(x, kernel, bias), run(x, kernel, bias))


def test_new_weights_at_the_same_address_are_used():
    """A kernel that is an argument is not cached by its address."""
    x, kernel, bias = arrays(9, 16, 32, 3, 1)
    run = jax.jit(partial(convolve, algorithm="onednn"))
    for scale in (1.0, 2.0, 3.0):
        expected = convolve(x, scale * kernel, bias, algorithm="xla")
        assert_close(run(x, scale * kernel, bias), expected)


@pytest.mark.medium
@pytest.mark.parametrize("options", [{}, {"se_reduction": 4}], ids=str)
def test_a_fused_nets_relu_is_in_the_convolution_unless_squeeze_and_excite_is_between(options):
    small = dict(depths=(1, 2), widths=(8, 16), strides=(2, 2), num_classes=5)
    net = rj.create("repvgg_a0", **small, **options, conv_algorithm="onednn")
    images = random_images(2, 12, 12, 3)
    plain, fused = rj.fuse(net, random_variables(net, 0))
    program = jax.jit(plain.apply).lower(fused, images).as_text()
    assert program.count("relu = true") == (0 if options else 3)
    by_xla = plain.clone(conv_algorithm="xla")
    expected = jax.jit(by_xla.apply)(fused, images)
    assert_close(jax.jit(plain.apply)(fused, images), expected)
    assert_close(jax.jit(partial(plain.apply, fused))(images), expected)

    def loss(net, variables):
        return jnp.sin(net.apply(variables, images)).sum()

    assert_close(*(jax.jit(jax.grad(partial(loss, net)))(fused) for net in (plain, by_xla)))
    # `verify` also accepts a fused net, which it compares with itself.
    assert rj.verify(plain, fused, images).max_relative_error == 0


GRADIENT = """
import jax
from repvgg_jax.ops.convolution import convolve
x = jax.random.normal(jax.random.key(0), (64, 8, 8, 8))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 8))
gradient = jax.jit(jax.grad(lambda kernel: (convolve(x, kernel) ** 2).sum()))(kernel)
print(gradient.tobytes().hex())
"""


@pytest.mark.system
def test_a_small_convolution_does_not_depend_on_the_number_of_threads():
    started = [
        subprocess.Popen(
            [sys.executable, "-c", GRADIENT],
            env=os.environ | {"OMP_NUM_THREADS": threads, "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for threads in ("1", "2")
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert outputs[0] == outputs[1] != b""

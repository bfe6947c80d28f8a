"""The ways to compute a convolution's passes agree, and the rule names only ways that can."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.ops.algorithms import (
    WAYS,
    Ways,
    best_convolution,
    convolve_by,
    kernel_gradient_by_matmul,
)
from tests.support.convolutions import direct, errors, passes


def example(shape, kernel_shape, strides, seed=0):
    rng = np.random.default_rng(seed)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in (shape, kernel_shape))
    dy = rng.normal(size=jax.eval_shape(lambda: direct(x, kernel, strides)).shape)
    return x, kernel, dy.astype(np.float32)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(
    "kernel_shape", [(3, 3, 8, 12), (3, 3, 4, 12), (1, 1, 8, 12), (5, 3, 8, 4)]
)
def test_kernel_gradient_by_matmul(kernel_shape, side, strides):
    x, kernel, dy = example((2, side, side, 8), kernel_shape, strides)
    expected = jax.vjp(lambda k: direct(x, k, strides), kernel)[1](dy)[0]
    found = kernel_gradient_by_matmul(x, dy, kernel_shape, strides)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("way", WAYS)
def test_each_pass_in_its_own_way(way):
    """One pass at a time, so that a way wired to the wrong pass shows."""
    x, kernel, dy = example((2, 6, 6, 8), (3, 3, 8, 12), 1)
    expected = passes(direct, x, kernel, dy)
    for field in Ways._fields if way != "matmul" else ("kernel_gradient",):
        ways = Ways()._replace(**{field: way})
        found = passes(lambda x, kernel, ways=ways: convolve_by(x, kernel, ways), x, kernel, dy)
        assert max(errors(found, expected)) < 1e-5
        changed = [bool(jnp.any(f != e)) for f, e in zip(found, expected, strict=True)]
        others = [c for name, c in zip(Ways._fields, changed, strict=True) if name != field]
        assert not any(others)


def test_a_way_that_cannot_is_refused():
    x, kernel, _ = example((2, 8, 8, 8), (3, 3, 8, 12), 2)
    with pytest.raises(UsageError, match="forward='winograd2'"):
        convolve_by(x, kernel, Ways("winograd2"), 2)
    with pytest.raises(UsageError, match="direct or winograd2"):
        convolve_by(x, kernel, Ways(input_gradient="matmul"), 1)


def test_the_rule_names_ways_that_can():
    sizes = itertools.product([1, 64], [1, 7, 56], [3, 48, 256], [1, 3], [1, 2], [1, 4])
    for batch, side, channels, size, strides, groups in sizes:
        if channels % groups:
            continue
        x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
        kernel = jax.ShapeDtypeStruct((size, size, channels // groups, 4 * channels), jnp.float32)
        ways = best_convolution(x.shape, kernel.shape, strides)
        conv = lambda x, k, ways=ways, s=strides: convolve_by(x, k, ways, s)  # noqa: E731
        jax.eval_shape(lambda x, k, conv=conv: jax.vjp(conv, x, k)[1](conv(x, k)), x, kernel)


def test_the_rule_follows_the_measurements():
    every = Ways("winograd4", "winograd4", "winograd4")
    assert best_convolution((16, 14, 14, 192), (3, 3, 192, 192)) == every
    assert best_convolution((64, 32, 32, 32), (3, 3, 32, 32)) == Ways(kernel_gradient="winograd4")
    assert best_convolution((64, 32, 32, 16), (3, 3, 16, 16)) == Ways()
    assert best_convolution((16, 28, 28, 96), (3, 3, 96, 192), 2) == Ways(kernel_gradient="matmul")


def test_the_rule_is_direct_for_what_was_not_measured():
    assert best_convolution((16, 14, 14, 256), (3, 3, 64, 256)) == Ways()  # groups
    assert best_convolution((16, 14, 14, 192), (1, 1, 192, 192)) == Ways()
    assert best_convolution((1, 14, 14, 192), (3, 3, 192, 192)) == Ways()

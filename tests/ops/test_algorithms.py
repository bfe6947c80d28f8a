"""The algorithms of each pass agree, and `fastest_algorithms` names only possible ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.ops.algorithms import (
    PassAlgorithms,
    convolve_with,
    fastest_algorithms,
    kernel_gradient_by_matmul,
)
from tests.support.convolutions import direct, errors, passes


def example(shape, kernel_shape, strides, seed=0):
    rng = np.random.default_rng(seed)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, kernel_shape))
    dy = rng.normal(size=jax.eval_shape(lambda: direct(x, kernel, strides)).shape)
    return x, kernel, jnp.asarray(dy, jnp.float32)


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


@pytest.mark.parametrize("way", ["direct", "winograd2", "winograd4", "matmul"])
def test_each_pass_by_its_own_algorithm(way):
    """Changes one pass at a time, to detect an algorithm that is used for the wrong pass."""
    x, kernel, dy = example((2, 6, 6, 8), (3, 3, 8, 12), 1)
    expected = passes(direct, x, kernel, dy)
    for field in PassAlgorithms._fields if way != "matmul" else ("kernel_gradient",):
        ways = PassAlgorithms()._replace(**{field: way})
        found = passes(lambda x, kernel, ways=ways: convolve_with(x, kernel, ways), x, kernel, dy)
        assert max(errors(found, expected)) < 1e-5
        changed = [bool(jnp.any(f != e)) for f, e in zip(found, expected, strict=True)]
        others = [
            c for name, c in zip(PassAlgorithms._fields, changed, strict=True) if name != field
        ]
        assert not any(others)


def test_an_impossible_algorithm_is_refused():
    x, kernel, _ = example((2, 8, 8, 8), (3, 3, 8, 12), 2)
    with pytest.raises(UsageError, match="forward='winograd2'"):
        convolve_with(x, kernel, PassAlgorithms("winograd2"), 2)
    with pytest.raises(UsageError, match="direct or winograd2"):
        convolve_with(x, kernel, PassAlgorithms(input_gradient="matmul"), 1)


@pytest.mark.medium
def test_the_rule_names_possible_algorithms():
    sizes = itertools.product([1, 64], [1, 7, 56], [3, 48, 256], [1, 3], [1, 2], [1, 4])
    for batch, side, channels, size, strides, groups in sizes:
        if channels % groups:
            continue
        x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
        kernel = jax.ShapeDtypeStruct((size, size, channels // groups, 4 * channels), jnp.float32)
        ways = fastest_algorithms(x.shape, kernel.shape, strides)
        conv = lambda x, k, ways=ways, s=strides: convolve_with(x, k, ways, s)  # noqa: E731
        gradients = jax.eval_shape(
            lambda x, k, conv=conv: jax.vjp(conv, x, k)[1](conv(x, k)), x, kernel
        )
        assert [g.shape for g in gradients] == [x.shape, kernel.shape]


def test_the_rule_follows_the_measurements():
    every = PassAlgorithms("winograd4", "winograd4", "winograd4")
    assert fastest_algorithms((16, 14, 14, 192), (3, 3, 192, 192)) == every
    assert fastest_algorithms((64, 32, 32, 32), (3, 3, 32, 32)) == PassAlgorithms(
        kernel_gradient="winograd4"
    )
    assert fastest_algorithms((64, 32, 32, 16), (3, 3, 16, 16)) == PassAlgorithms()
    assert fastest_algorithms((16, 28, 28, 96), (3, 3, 96, 192), 2) == PassAlgorithms(
        kernel_gradient="matmul"
    )


def test_the_rule_is_direct_for_what_was_not_measured():
    assert fastest_algorithms((16, 14, 14, 256), (3, 3, 64, 256)) == PassAlgorithms()  # groups
    assert fastest_algorithms((16, 14, 14, 192), (1, 1, 192, 192)) == PassAlgorithms()
    assert fastest_algorithms((1, 14, 14, 192), (3, 3, 192, 192)) == PassAlgorithms()

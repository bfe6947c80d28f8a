"""Winograd convolutions equal direct ones: values, both gradients, odd sizes, groups."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvgg_jax.errors import UsageError
from repvgg_jax.ops.algorithms import PassAlgorithms, convolve_with
from tests.support.convolutions import direct, errors, passes, quick


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def winograd_conv(x, kernel, tile):
    """Returns the convolution with all passes computed by Winograd's algorithm."""
    return convolve_with(x, kernel, PassAlgorithms(*3 * [f"winograd{tile}"]))


def example(batch, height, width, cin, cout, groups=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (batch, height, width, cin))
    return x, rng.uniform(-1, 1, (3, 3, cin // groups, cout))


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(
    ("height", "width", "groups"),
    [(8, 8, 1), (7, 9, 1), (1, 5, 1), (6, 7, 4)],
)
def test_in_float64_it_is_the_convolution(tile, height, width, groups):
    x, kernel = example(2, height, width, 8, 12, groups)
    dy = np.random.default_rng(1).normal(size=(2, height, width, 12))
    conv = lambda x, kernel: winograd_conv(x, kernel, tile)  # noqa: E731
    found, expected = passes(conv, x, kernel, dy), passes(direct, x, kernel, dy)
    assert [f.shape for f in found] == [e.shape for e in expected]
    assert max(errors(found, expected)) < 1e-13


def trained_like(rng, shape, per_channel):
    """Uses heavy-tailed values and channels of very different scales, as in fused kernels."""
    scale = 10 ** rng.uniform(-1, 1, per_channel)
    return rng.standard_t(4, shape) * scale


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["uniform", "trained"])
def test_float32_errors_are_a_small_multiple_of_the_direct_ones(kind):
    rng = np.random.default_rng(3)
    x, kernel = example(4, 28, 28, 64, 64)
    if kind == "trained":
        x = np.maximum(trained_like(rng, x.shape, 64), 0)
        kernel = trained_like(rng, kernel.shape, 64) * 0.02
    dy = rng.normal(size=x.shape)
    exact = passes(direct, x, kernel, dy)
    single = [np.float32(value) for value in (x, kernel, dy)]
    base = errors(passes(direct, *single), exact)
    # Measured error: 0.3 to 0.7 (m = 2) and 3 to 8 times (m = 4) that of XLA's convolution, and 2
    # and 30 times that of sequential summation.
    for tile, bound in {2: 1.5, 4: 16}.items():
        conv = lambda x, kernel, tile=tile: winograd_conv(x, kernel, tile)  # noqa: E731
        found = errors(passes(conv, *single), exact)
        assert all(f < bound * b for f, b in zip(found, base, strict=True)), (found, base)
        assert max(found) < {2: 1.5e-6, 4: 2e-5}[tile]


@pytest.mark.parametrize("tile", [2, 4])
def test_bfloat16_rounds_once(tile):
    x, kernel = (jnp.asarray(value, jnp.bfloat16) for value in example(2, 9, 9, 32, 32))
    dy = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, 9, 32)), jnp.bfloat16)
    conv = lambda x, kernel: winograd_conv(x, kernel, tile)  # noqa: E731
    found = passes(conv, x, kernel, dy)
    assert {value.dtype for value in found} == {jnp.dtype(jnp.bfloat16)}
    wide = [np.asarray(value, np.float64) for value in (x, kernel, dy)]
    for f, e in zip(found, passes(direct, *wide), strict=True):
        # Half a unit in the last place of bfloat16, plus the error of the float32 sums.
        f = np.asarray(f, np.float64)
        assert np.all(np.abs(f - e) <= np.abs(e) * 2**-8 + np.abs(e).max() * 1e-5)


def test_gradient_of_a_gradient():
    x, kernel = map(jnp.asarray, example(1, 6, 6, 3, 4))

    def penalty(conv):
        return quick(
            jax.grad(lambda k: (jax.grad(lambda x: (conv(x, k) ** 3).sum())(x) ** 2).sum())
        )

    found = penalty(lambda x, k: winograd_conv(x, k, 4))(kernel)
    np.testing.assert_allclose(found, penalty(direct)(kernel), rtol=1e-9)


@pytest.mark.parametrize(
    ("shape", "tile", "message"),
    [
        ((3, 3, 8, 8), 3, "winograd2 or winograd4"),
        ((1, 1, 8, 8), 2, r"not support kernel \(1, 1, 8, 8\)"),
        ((3, 3, 3, 8), 2, "no group count fits"),
    ],
)
def test_an_impossible_shape_or_tile_is_refused(shape, tile, message):
    with pytest.raises(UsageError, match=message):
        winograd_conv(jnp.ones((1, 8, 8, 8)), jnp.ones(shape), tile)

"""Operations on affine maps, compared with convolutions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_jax import affine
from repvgg_jax.affine import Affine


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def apply(branch, x, groups=1, padding=None):
    kh, kw = branch.kernel.shape[:2]
    padding = padding or [(kh // 2, kh // 2), (kw // 2, kw // 2)]
    y = jax.lax.conv_general_dilated(
        x,
        branch.kernel,
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y + jnp.reshape(branch.bias, (1, 1, 1, -1))


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 999),
        "groups": st.sampled_from([1, 2, 4]),
        "width": st.integers(1, 3),
        "size": st.sampled_from([1, 3, 5]),
    }
)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * float(jnp.abs(expected).max()))


@given(shapes)
def test_fold_bn_is_the_batch_norm_after_the_convolution(case):
    cin, cout, g = case["width"] * case["groups"], 4, case["groups"]
    x, kernel, bias = draw(case["seed"], (2, 7, 6, cin), (3, 3, cin // g, cout), (cout,))
    scale, shift, mean, log_var = draw(case["seed"] + 1, *[(cout,)] * 4)
    var = jnp.exp(log_var)

    @jax.jit
    def both(conv, bn_params, bn_stats, x):
        return apply(affine.fold_bn(conv, bn_params, bn_stats, 1e-3), x, g), apply(conv, x, g)

    bn = {"scale": scale, "bias": shift}, {"mean": mean, "var": var}
    got, y = map(np.asarray, both(Affine(kernel, bias), *bn, x))
    scale, shift, mean, var = map(np.asarray, (scale, shift, mean, var))
    close(got, (y - mean) / np.sqrt(var + 1e-3) * scale + shift)


@given(shapes)
def test_identity_and_average_are_what_they_say(case):
    g, k = case["groups"], case["size"]
    channels = case["width"] * g
    (x,) = draw(case["seed"], (2, 7, 6, channels))
    like = jax.ShapeDtypeStruct((k, k, case["width"], channels), x.dtype)
    window = (1, k, k, 1)

    @jax.jit
    def convolved(x):
        return [apply(affine.identity(like), x, g), apply(affine.average(like), x, g)]

    same, averaged = convolved(x)
    close(same, x)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME")
    close(averaged, total / k**2)


@given(shapes, st.sampled_from([(1, 3), (3, 1), (1, 1)]))
def test_sum_of_branches_of_any_shape(case, odd_size):
    g, width = case["groups"], case["width"]
    x, k1, k2, b2 = draw(
        case["seed"],
        (2, 7, 6, width * g),
        (case["size"], case["size"], width, 4),
        (*odd_size, width, 4),
        (4,),
    )

    @jax.jit
    def both(one, two, x):
        return apply(affine.add(one, two), x, g), apply(one, x, g) + apply(two, x, g)

    close(*both(Affine(k1), Affine(k2, b2), x))


@given(shapes, st.sampled_from([(1, 3), (3, 1), (1, 1)]))
def test_concatenated_branches_of_any_shape(case, odd_size):
    width = case["width"]
    x, k1, k2, b2 = draw(
        case["seed"],
        (2, 7, 6, width),
        (case["size"], case["size"], width, 4),
        (*odd_size, width, 4),
        (4,),
    )

    @jax.jit
    def both(one, two, x):
        separate = jnp.concatenate([apply(one, x), apply(two, x)], -1)
        return apply(affine.concat(one, two), x), separate

    close(*both(Affine(k1), Affine(k2, b2), x))


@given(shapes, st.sampled_from([1, 3]))
def test_chain_is_one_after_the_other(case, first_size):
    g, width = case["groups"], case["width"]
    mid = 2 * g
    x, k1, b1, k2, b2 = draw(
        case["seed"],
        (2, 9, 8, width * g),
        (first_size, first_size, width, mid),
        (mid,),
        (case["size"], case["size"], mid // g, 4),
        (4,),
    )
    valid = [(0, 0), (0, 0)]

    @jax.jit
    def both(first, second, x):
        one_by_one = apply(second, apply(first, x, g, valid), g, valid)
        return apply(affine.chain(first, second, g), x, g, valid), one_by_one

    close(*both(Affine(k1, b1), Affine(k2, b2), x))


def test_a_kernel_without_a_common_centre_is_refused():
    with pytest.raises(ValueError, match="centered"):
        affine.pad_to((4, 4), Affine(jnp.ones((3, 3, 1, 1))))
    with pytest.raises(ValueError, match="cout must be a multiple of cin / groups"):
        affine.identity(jax.ShapeDtypeStruct((3, 3, 2, 3), "float32"))

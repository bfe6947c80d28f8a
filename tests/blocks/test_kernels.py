"""Kernels that blocks generate, compared with the equivalent layers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvgg_jax.blocks import orepa
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.fusion.verify import relative_error
from tests.support.blocks import build
from tests.support.variables import random_images


def test_dirac_kernels_start_as_a_delta_and_a_tenth_of_unit_filters():
    block = BLOCKS["dirac"](features=8, groups=2)
    params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))["params"]
    kernel = np.array(block.kernel(params))
    for o in range(8):
        assert kernel[1, 1, o % 4, o] > 0.8  # 1 from the delta, and at most 0.1 from K
        kernel[1, 1, o % 4, o] -= 1
    np.testing.assert_allclose(np.sqrt((kernel**2).sum((0, 1, 2))), 0.1, rtol=1e-4)


@pytest.mark.medium
def test_orepas_kernel_is_the_sum_of_its_layers():
    with jax.enable_x64(True):
        block, variables, x = build("orepa", 8, 8, 1, 2, 3, 1, (6, 6), "float64")
        p, groups = variables["params"], 2
        kernels = {name[5:]: layer["kernel"] for name, layer in p.items() if name[:4] == "conv"}

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
            run(wide, kernels["kxk"]),
            run(run(wide, kernels["average_1x1"]), window, 8),
            run(run(wide, kernels["prior_1x1"]), bank, 8),
            run(wide + run(wide, kernels["chain_1x1"]), kernels["chain_kxk"]),
            run(x, kernels["1x1"]),
            run(run(wide, kernels["depthwise"], 8), kernels["pointwise"]),
        ]
        scales = p["branch_scales"][:, None, None, None]
        expected = sum(y * v for y, v in zip(layers, scales, strict=True))
        got = block.convolve(x, block.kernel(p))
        assert relative_error(expected, got) < 1e-6  # the bank is kept in float32
    fresh = orepa.OREPABlock(8).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))["params"]
    np.testing.assert_allclose(fresh["branch_scales"][:, 0], [0.25, 0.25, 0, 0.5, 1, 0.5])
    assert not fresh["conv_chain_1x1"]["kernel"].any()


@pytest.mark.medium
def test_doconv_composes_a_depthwise_and_a_plain_convolution():
    block, variables, _ = build("doconv", 8, 8, 1, 2, 3, 1, (6, 6), "float32")
    p = variables["params"]
    kernel = np.zeros((3, 3, 4, 8))
    for o, i, t, s in itertools.product(range(8), range(4), range(9), range(9)):
        own = float(t == s) + p["depthwise_kernel"][o // 4 * 4 + i, t, s]
        kernel[t // 3, t % 3, i, o] += own * p["conv_kxk"]["kernel"][s // 3, s % 3, i, o]
    np.testing.assert_allclose(block.kernel(p), kernel, rtol=1e-4, atol=1e-5)


def test_the_border_of_a_diverse_branch_carries_no_gradient():
    block, variables, x = build("dbb", 8, 8, 1, 1, 3, 1, (1, 1), "float32")

    def loss(bias):
        params = variables["params"]
        params = params | {"bn_chain_1x1": params["bn_chain_1x1"] | {"bias": bias}}
        # On an image of one pixel, the kxk reads the pixel and eight border values.
        return block.apply(variables | {"params": params}, x).sum()

    bias = variables["params"]["bn_chain_1x1"]["bias"]
    kernel = variables["params"]["conv_chain_kxk"]["kernel"]
    stats, params = variables["batch_stats"]["bn_chain_kxk"], variables["params"]["bn_chain_kxk"]
    scale = params["scale"] / np.sqrt(stats["var"] + block.bn_epsilon)
    expected = 3 * kernel[1, 1] @ scale  # the center tap alone, of three images
    np.testing.assert_allclose(jax.grad(loss)(bias), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["expandnet", "expandnet_ck"])
@pytest.mark.parametrize("case", [(3, 8, 2, 1, 5, 1), (8, 8, 1, 2, 5, 2), (8, 16, 2, 1, 3, 1)])
def test_an_expanded_convolution_is_its_layers_one_after_the_other(name, case):
    strides, groups, dilation = case[2], case[3], case[5]

    def one_by_one(x, kernels):
        """Pads only the input; the last kxk has the stride, and a 1x1 after it has stride 1."""
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
        kernels = [params[f"conv_{i}"]["kernel"] for i in range(len(params) - 1)]
        assert len(kernels) == (3 if name == "expandnet" else block.kernel_size // 2)

        def in_one(x, kernels):
            trees = {f"conv_{i}": {"kernel": kernel} for i, kernel in enumerate(kernels)}
            return block.convolve(x, block.kernel(trees))

        expected, pull = jax.vjp(one_by_one, x, kernels)
        got, pull_in_one = jax.vjp(in_one, x, kernels)
        assert relative_error(expected, got) < 1e-12
        direction = random_images(*expected.shape, seed=3, dtype="float64")
        gradients = (jax.tree.leaves(pulled(direction)) for pulled in (pull, pull_in_one))
        pairs = zip(*gradients, strict=True)
        assert all(relative_error(theirs, ours) < 1e-12 for theirs, ours in pairs)

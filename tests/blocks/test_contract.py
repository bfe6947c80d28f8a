"""The contract of blocks, tested for every block in the registry."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import repvgg_jax as rj
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.nets import abstract
from tests.support.blocks import CASES, build, check_block
from tests.support.variables import random_images, random_variables

TRAIN_FORMS = [name for name in BLOCKS if name != "fused"]
EVERY_CASE = [
    (8, 8, strides, groups, 3, dilation, size, "float64")
    for strides, groups, dilation, size in itertools.product(
        (1, 2), (1, 2, 8), (1, 2), ((6, 6), (5, 8))
    )
]


@pytest.mark.parametrize(
    "case",
    [CASES[0], *(pytest.param(case, marks=pytest.mark.medium) for case in CASES[1:])],
    ids=str,
)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_affine_and_is_its_fused_convolution(name, case):
    check_block(name, case)


@pytest.mark.medium
@pytest.mark.parametrize("size", [(1, 7), (5, 3)], ids=str)
@pytest.mark.parametrize(("name", "padding"), [("plain", "SAME"), ("conv", "VALID")])
def test_a_single_convolution_has_any_kernel_and_padding(name, padding, size):
    check_block(name, (8, 8, 2, 1, size, 1, (9, 8), "float32", padding))


@pytest.mark.parametrize("fields", [{"kernel_size": (1, 7)}, {"padding": "VALID"}], ids=str)
def test_branches_need_a_square_kernel_and_symmetric_padding(fields):
    with pytest.raises(
        rj.UsageError, match="cannot be of class ACBlock, which takes a square kernel"
    ):
        BLOCKS["acb"](8, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_its_fused_convolution_over_all_of_the_space(name):
    for case in EVERY_CASE:
        check_block(name, case)


# Constants before a BatchNorm: they are in the papers' blocks but do not affect training.
UNSEEN = {("qarepvgg", "bn_kxk/bias")}


@pytest.mark.medium
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
    with pytest.raises(rj.UsageError, match="not equivalent to a convolution"):
        rj.fuse(net, random_variables(net, 1, 8))


@pytest.mark.medium
@pytest.mark.parametrize("name", [n for n in TRAIN_FORMS if n != "relu_in_branch"])
def test_a_net_of_each_block_fuses_to_the_deploy_nets_own_tree(name):
    net = rj.create(
        "repvgg_d2se", block=name, num_classes=5, depths=(1, 2), widths=(16, 16), strides=(2, 2)
    )
    variables = random_variables(net, 2, 16)
    plain, fused = rj.fuse(net, variables)
    own = abstract(plain)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, fused)
    report = rj.verify(net, variables, random_images(16, 17, 16, 3))
    assert report.max_relative_error < 1e-5
    assert report.top1_agreement == 1.0


@pytest.mark.medium
def test_the_documented_block_keeps_the_contract(monkeypatch):
    page = Path(__file__).parents[2] / "docs/guides/add_a_block.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 50, "the page promises little to write"
    module = {"__name__": "mean"}
    exec(compile(code, str(page), "exec"), module)
    monkeypatch.setitem(BLOCKS, "mean", module["MeanBlock"])
    for case in CASES:
        check_block("mean", case)
    net = rj.create(
        "repvgg_a0", block="mean", num_classes=5, depths=(1,), widths=(8,), strides=(2,)
    )
    report = rj.verify(net, random_variables(net, 1, 8), random_images(4, 8, 8, 3))
    assert report.max_relative_error < 1e-5

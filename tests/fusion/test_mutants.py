"""Mutation tests: each seeded fault makes the named test fail.

Without the fault they pass, where they stand.
"""

from importlib import import_module

import jax
import jax.numpy as jnp
import pytest

from repvgg_jax.affine import Affine
from repvgg_jax.blocks import base as branch_file
from repvgg_jax.blocks import dbb as dbb_file
from repvgg_jax.nets.repvgg import RepVGG, RepVGGPlus
from repvgg_jax.ops import convolution
from tests.support.blocks import CASES, check_block

# The package exports the function under the name of its file.
fuse = import_module("repvgg_jax.fusion.fuse")
train_form_conv = branch_file.Conv


def faulty_fold(scale=None, mean=1.0, beta=1.0, epsilon=None, root=jnp.sqrt):
    def fold_bn(branch, params, stats, given):
        added = given if epsilon is None else epsilon
        t = (scale or (lambda gamma: gamma))(params["scale"]) / root(stats["var"] + added)
        return Affine(
            branch.kernel * t[None, None, None],
            beta * params["bias"] + (branch.bias - mean * stats["mean"]) * t,
        )

    return fold_bn


def corner(size, branch):
    margin = [
        (0, large - small) for large, small in zip(size, branch.kernel.shape[:2], strict=True)
    ]
    return Affine(jnp.pad(branch.kernel, [*margin, (0, 0), (0, 0)]), branch.bias)


def misplaced_add(*branches):
    size = max(branch.kernel.shape[:2] for branch in branches)
    padded = [corner(size, branch) for branch in branches]
    return Affine(sum(b.kernel for b in padded), sum(b.bias for b in padded))


def identity_of(channel):
    def identity(like):
        kh, kw, group_width, features = like.shape
        out = jnp.arange(features)
        return Affine(
            jnp.zeros(like.shape).at[kh // 2, kw // 2, channel(out, group_width), out].set(1)
        )

    return identity


def undilated(*args, dilation=1, **kwargs):
    return train_form_conv(*args, **kwargs)


def same_padded(size, dilation):
    return "SAME"


def bordered_by_zeros(block, y, branch, train):
    margin = (block.dilation * (block.kernel_size // 2),) * 2
    return jnp.pad(block.norm(y, branch, train), [(0, 0), margin, margin, (0, 0)])


def exact(strides):
    """Runs the contract test on a grouped, dilated RepVGG block."""
    check_block("repvgg", (8, 8, strides, 2, 3, 2, (8, 6), "float64"))


def named(test):
    """Returns the test `<module>.<name>`, where the module is in tests/."""
    module, _, name = test.rpartition(".")
    return getattr(import_module(f"tests.{module}"), name)


# Fault -> (target, replacement, test that must fail, arguments of the test).
FAULTS = {
    "mean forgotten": (branch_file, "fold_bn", faulty_fold(mean=0.0), exact, (1,)),
    "mean added": (branch_file, "fold_bn", faulty_fold(mean=-1.0), exact, (1,)),
    "beta forgotten": (branch_file, "fold_bn", faulty_fold(beta=0.0), exact, (1,)),
    "gamma forgotten": (branch_file, "fold_bn", faulty_fold(scale=jnp.ones_like), exact, (1,)),
    "sign of gamma lost": (branch_file, "fold_bn", faulty_fold(scale=jnp.abs), exact, (1,)),
    "variance not rooted": (branch_file, "fold_bn", faulty_fold(root=lambda v: v), exact, (1,)),
    "epsilon forgotten": (branch_file, "fold_bn", faulty_fold(epsilon=0.0), exact, (1,)),
    "another epsilon": (branch_file, "fold_bn", faulty_fold(epsilon=1e-3), exact, (1,)),
    "padding of the 1x1 to a corner": (branch_file, "add", misplaced_add, exact, (2,)),
    "padding SAME": (convolution, "symmetric_padding", same_padded, exact, (2,)),
    "group offset": (
        branch_file,
        "identity",
        identity_of(lambda out, width: jnp.minimum(out, width - 1)),
        exact,
        (1,),
    ),
    "identity index": (
        branch_file,
        "identity",
        identity_of(lambda out, width: width - 1 - out % width),
        exact,
        (1,),
    ),
    "dilation": (branch_file, "Conv", undilated, exact, (1,)),
    "order of squeeze-and-excite and ReLU": (
        RepVGG,
        "run_activated",
        RepVGGPlus.run_activated,
        "fusion.test_fuse.test_squeeze_excite_stands_before_the_relu_and_averages_all_of_the_map",
        (),
    ),
    "dtype of folding": (
        fuse,
        "accumulation_dtype",
        lambda dtype: jnp.bfloat16,
        "fusion.test_fuse.test_folding_is_wide_whatever_the_compute_type",
        (),
    ),
    "border of zeros behind a BatchNorm": (
        dbb_file.DiverseBranchBlock,
        "_bordered",
        bordered_by_zeros,
        check_block,
        ("dbb", CASES[0]),
    ),
    "EMA mix": (
        fuse,
        "check_pair",
        lambda variables: None,
        "optim.test_ema.test_a_mixed_pair_is_refused_and_a_true_one_fuses",
        (),
    ),
}


@pytest.mark.medium
@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_fails_its_test(name, monkeypatch):
    where, attribute, fault, test, arguments = FAULTS[name]
    test = named(test) if isinstance(test, str) else test
    monkeypatch.setattr(where, attribute, fault)
    # Programs that were compiled with or without the fault must not be reused.
    jax.clear_caches()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(*arguments)
    jax.clear_caches()

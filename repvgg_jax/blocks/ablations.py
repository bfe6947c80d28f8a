"""RepVGG's own variants of its block (arXiv 2101.03697, Table 7); "trivial" is in `dirac`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, identity
from repvgg_jax.blocks.base import Block, fold_branch, fold_norm
from repvgg_jax.errors import UsageError
from repvgg_jax.ops.convolution import relu


class IdentityWithoutBNBlock(Block):
    """BN(conv_kxk(x)) + BN(conv_1x1(x)) + x: 74.18% in the paper, where RepVGG's has 75.14%."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self.conv_bn(x, "_kxk", self.kernel_size, train)
        y += self.conv_bn(x, "_pointwise", 1, train)
        return y + x.astype(y.dtype) if self.keeps_shape(x.shape[-1]) else y


def fuse_identity_without_bn(block: Block, params: Mapping, batch_stats: Mapping) -> Affine:
    """The folded branches, and the identity as it is."""
    branches = [fold_branch(params, batch_stats, suffix) for suffix in ("_kxk", "_pointwise")]
    return add(*branches, *_identity(block, params))


class PostAdditionBNBlock(Block):
    """BN(conv_kxk(x) + conv_1x1(x) + x): 73.52% in the paper."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = self.conv_of(x, "_kxk", self.kernel_size) + self.conv_of(x, "_pointwise", 1)
        if self.keeps_shape(x.shape[-1]):
            y += x
        return self.norm_of(y, "", train)


def fuse_post_addition_bn(block: Block, params: Mapping, batch_stats: Mapping) -> Affine:
    """The sum of the branches, then the BatchNorm."""
    branches = [Affine(params[f"conv{suffix}"]["kernel"]) for suffix in ("_kxk", "_pointwise")]
    return fold_norm(add(*branches, *_identity(block, params)), params, batch_stats, "")


def _identity(block: Block, params: Mapping) -> list[Affine]:
    cin = params["conv_kxk"]["kernel"].shape[2] * block.groups
    return [identity(block.identity_shape())] if block.keeps_shape(cin) else []


class ReLUInBranchBlock(Block):
    """relu(BN(conv_kxk(x))) + relu(BN(conv_1x1(x))) + relu(BN(x)): 75.69%, and not affine."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = relu(self.conv_bn(x, "_kxk", self.kernel_size, train))
        y += relu(self.conv_bn(x, "_pointwise", 1, train))
        if self.keeps_shape(x.shape[-1]):
            y += relu(self.norm_of(x, "_identity", train))
        return y


def refuse_relu_in_branch(block: Block, params: Mapping, batch_stats: Mapping) -> NoReturn:
    """Raises UsageError: there is no such convolution."""
    raise UsageError(
        "block='relu_in_branch' cannot be fused: with a ReLU in each branch it is not affine, so "
        "no convolution equals it; deploy its train form"
    )

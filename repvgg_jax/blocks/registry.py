"""The registry of blocks: each a train-time Module, and its algebra into one convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.ablations import (
    IdentityWithoutBNBlock,
    PostAdditionBNBlock,
    ReLUInBranchBlock,
    fuse_identity_without_bn,
    fuse_post_addition_bn,
    refuse_relu_in_branch,
)
from repvgg_jax.blocks.acb import ACBlock, fuse_acb
from repvgg_jax.blocks.base import Block
from repvgg_jax.blocks.csla import CSLABlock, fuse_csla
from repvgg_jax.blocks.dbb import DiverseBranchBlock, fuse_dbb
from repvgg_jax.blocks.dirac import DiracBlock, TrivialBlock, fuse_dirac, fuse_trivial
from repvgg_jax.blocks.doconv import DOConvBlock, fuse_doconv
from repvgg_jax.blocks.expandnet import ExpandCKBlock, ExpandCLBlock, fuse_expand
from repvgg_jax.blocks.fused import FusedConv, fuse_fused
from repvgg_jax.blocks.mobileone import MobileOneBlock, fuse_mobileone
from repvgg_jax.blocks.orepa import OREPABlock, fuse_orepa
from repvgg_jax.blocks.qarepvgg import QARepVGGBlock, fuse_qarepvgg
from repvgg_jax.blocks.repvgg import RepVGGBlock, fuse_repvgg


class Reparam(NamedTuple):
    """A way to make a train-time block, and `fuse(block, params, batch_stats) -> Affine`.

    `block` is called with the hyper-parameters of a net's plan; the unbound module it gives brings
    `fuse` what the trees lack (kernel size, groups, branches without parameters). `fuse` raises
    UsageError where the block has no such convolution.
    """

    block: Callable[..., nn.Module]
    fuse: Callable[[nn.Module, Mapping, Mapping], Affine]


BLOCKS: dict[str, Reparam] = {
    "repvgg": Reparam(RepVGGBlock, fuse_repvgg),
    "plain": Reparam(partial(RepVGGBlock, branches=("kxk",)), fuse_repvgg),
    "acb": Reparam(ACBlock, fuse_acb),
    "dbb": Reparam(DiverseBranchBlock, fuse_dbb),
    "orepa": Reparam(OREPABlock, fuse_orepa),
    "mobileone": Reparam(MobileOneBlock, fuse_mobileone),
    "qarepvgg": Reparam(QARepVGGBlock, fuse_qarepvgg),
    "dirac": Reparam(DiracBlock, fuse_dirac),
    "trivial": Reparam(TrivialBlock, fuse_trivial),
    "doconv": Reparam(DOConvBlock, fuse_doconv),
    "expandnet": Reparam(ExpandCLBlock, fuse_expand),
    "expandnet_ck": Reparam(ExpandCKBlock, fuse_expand),
    "csla": Reparam(CSLABlock, fuse_csla),
    "identity_without_bn": Reparam(IdentityWithoutBNBlock, fuse_identity_without_bn),
    "post_addition_bn": Reparam(PostAdditionBNBlock, fuse_post_addition_bn),
    "relu_in_branch": Reparam(ReLUInBranchBlock, refuse_relu_in_branch),
    "fused": Reparam(FusedConv, fuse_fused),
}


def module_type(block: Callable[..., nn.Module]) -> type[nn.Module]:
    """The Module class that a registry entry makes, under any number of partials."""
    while isinstance(block, partial):
        block = block.func
    return block


def fuse_block(block: nn.Module, params: Mapping, batch_stats: Mapping) -> Affine:
    """The block as one convolution, by the fusion registered for its class.

    Raises:
      ValueError: for a class that no entry of `BLOCKS` makes.
      UsageError: for a block that no convolution equals.
    """
    for reparam in BLOCKS.values():
        if module_type(reparam.block) is type(block):
            return reparam.fuse(block, params, batch_stats)
    raise ValueError(f"no fusion is registered in BLOCKS for {type(block).__name__}")


__all__ = ["BLOCKS", "Block", "FusedConv", "RepVGGBlock", "Reparam", "fuse_block", "module_type"]

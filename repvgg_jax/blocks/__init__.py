"""The registry of blocks: each a train-time Module, and its algebra into one convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from flax import linen as nn

from repvgg_jax.affine import Affine
from repvgg_jax.blocks.fused import FusedConv, fuse_fused
from repvgg_jax.blocks.repvgg import RepVGGBlock, fuse_repvgg


class Reparam(NamedTuple):
    """A way to make a train-time block, and `fuse(block, params, batch_stats) -> Affine`.

    `block` is called with the hyper-parameters of a net's plan; the unbound module it gives brings
    `fuse` what the trees lack (kernel size, groups, branches without parameters).
    """

    block: Callable[..., nn.Module]
    fuse: Callable[[nn.Module, Mapping, Mapping], Affine]


BLOCKS: dict[str, Reparam] = {
    "repvgg": Reparam(RepVGGBlock, fuse_repvgg),
    "plain": Reparam(partial(RepVGGBlock, branches=("kxk",)), fuse_repvgg),
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
    """
    for reparam in BLOCKS.values():
        if module_type(reparam.block) is type(block):
            return reparam.fuse(block, params, batch_stats)
    raise ValueError(f"no fusion is registered in BLOCKS for {type(block).__name__}")


__all__ = ["BLOCKS", "FusedConv", "RepVGGBlock", "Reparam", "fuse_block", "module_type"]

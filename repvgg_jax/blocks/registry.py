"""Registry of blocks by name."""

from repvgg_jax.blocks.ablations import (
    IdentityWithoutBNBlock,
    PostAdditionBNBlock,
    ReLUInBranchBlock,
)
from repvgg_jax.blocks.acb import ACBlock
from repvgg_jax.blocks.base import Block
from repvgg_jax.blocks.conv import ConvBlock
from repvgg_jax.blocks.csla import CSLABlock
from repvgg_jax.blocks.dbb import DiverseBranchBlock
from repvgg_jax.blocks.dirac import DiracBlock, TrivialBlock
from repvgg_jax.blocks.doconv import DOConvBlock
from repvgg_jax.blocks.expandnet import ExpandCKBlock, ExpandCLBlock
from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.mobileone import MobileOneBlock
from repvgg_jax.blocks.orepa import OREPABlock
from repvgg_jax.blocks.plain import PlainBlock
from repvgg_jax.blocks.qarepvgg import QARepVGGBlock
from repvgg_jax.blocks.repvgg import RepVGGBlock
from repvgg_jax.errors import check_known

# Register a new block by `BLOCKS["mine"] = MyBlock`.
BLOCKS: dict[str, type[Block]] = {
    "repvgg": RepVGGBlock,
    "plain": PlainBlock,
    "conv": ConvBlock,
    "acb": ACBlock,
    "dbb": DiverseBranchBlock,
    "orepa": OREPABlock,
    "mobileone": MobileOneBlock,
    "qarepvgg": QARepVGGBlock,
    "dirac": DiracBlock,
    "trivial": TrivialBlock,
    "doconv": DOConvBlock,
    "expandnet": ExpandCLBlock,
    "expandnet_ck": ExpandCKBlock,
    "csla": CSLABlock,
    "identity_without_bn": IdentityWithoutBNBlock,
    "post_addition_bn": PostAdditionBNBlock,
    "relu_in_branch": ReLUInBranchBlock,
    "fused": FusedConv,
}


def block_class(name: str) -> type[Block]:
    """Returns the class registered under a name.

    Raises:
      UsageError: if the name is unknown; the message suggests the closest matches.
    """
    check_known("block", name, BLOCKS)
    return BLOCKS[name]

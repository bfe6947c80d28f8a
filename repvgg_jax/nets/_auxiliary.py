"""Auxiliary heads: classifiers after inner layers, which are there in training only."""

from flax import linen as nn
from jax import Array

AUXILIARY_HEAD = "aux_"  # prefix of the names of auxiliary heads
AUXILIARY = "auxiliary"  # Flax collection of the auxiliary heads' logits in training


def run_auxiliary_head(net: nn.Module, head: nn.Module, x: Array, train: bool) -> None:
    """Sows the logits head(x) into the collection `auxiliary` if training, and else does nothing.

    The head is a submodule of the net that is called with (x, train).
    """
    if train or net.is_initializing():
        logits = head(x, train)
        if train:
            net.sow(AUXILIARY, f"{head.name}_logits", logits)

"""Starting from weights that are there: another head, another data set, or a fused net."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import Variables
from repvgg_jax.nets.repvgg import AUXILIARY_HEAD


def transfer(fresh: Variables, source: Variables) -> tuple[dict[str, Any], list[str]]:
    """`fresh` with the source's weights, but for heads of another number of classes.

    Args:
      fresh: the new net's own variables, from `init`.
      source: weights to start from, of the same plan.

    Returns:
      the variables, and the names of what stays fresh: `head`, and auxiliary heads' `fc`, or all of
      an auxiliary head that the source lacks. Those of the source that `fresh` lacks are left out.

    Raises:
      UsageError: where anything else differs in name or shape, listing it.
    """
    differing, renewed = [], []

    def pick(path: tuple, leaf: Array) -> Array:
        names = [key.key for key in path]
        value: Any = source
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None and value.shape == leaf.shape:
            return jnp.asarray(value, leaf.dtype)
        if names[1].startswith(AUXILIARY_HEAD) and names[1] not in source["params"]:
            renewed.append(names[1])
        elif names[1] == "head" or "fc" in names:
            renewed.append("/".join(names[1:-1]))
        else:
            differing.append("/".join(names))
        return leaf

    variables = jax.tree_util.tree_map_with_path(pick, fresh)
    named = partial(jax.tree_util.keystr, simple=True, separator="/")
    own = {named(path) for path, _ in jax.tree.leaves_with_path(fresh)}
    others = {named(path) for path, _ in jax.tree.leaves_with_path(source)} - own
    extra = sorted(
        name
        for name in others
        if (block := name.split("/")[1]) in fresh["params"] or not block.startswith(AUXILIARY_HEAD)
    )
    if differing or extra:
        raise UsageError(
            "init_from is of another net: it lacks, or has in another shape, "
            f"{', '.join(differing[:3]) or 'nothing'} ({len(differing)} in all); "
            f"it also holds {', '.join(extra[:3]) or 'nothing else'} ({len(extra)})"
        )
    return variables, list(dict.fromkeys(renewed))


def warn_if_fused(net: nn.Module) -> None:
    """The fused form can be trained, but it is the train form that trains well."""
    if net.block is FusedConv and net.plan():
        logging.warning(
            "training the fused form: it has no BatchNorm and no branches, and tunes worse; start "
            "from the train form, or give the fused net BatchNorms with repvgg_jax.insert_bn"
        )

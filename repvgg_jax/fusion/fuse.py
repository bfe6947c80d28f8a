"""Fusion as a pure function over `(net, variables)`, and the check that it changed nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.registry import fuse_block
from repvgg_jax.nets import Variables, check_names, check_pair
from repvgg_jax.ops.batch_norm import accumulation_dtype


def fuse(net: nn.Module, variables: Variables) -> tuple[nn.Module, dict[str, Any]]:
    """The same function as a plain net: `(net, variables) -> (plain net, {"params"})`.

    Every block of `net.plan()` becomes one convolution with a bias; what the plan doesn't name (the
    head, squeeze-and-excite) is handed over as it is. Pure, and so `jit`-able and differentiable in
    the variables. Folding is done in float32, or wider where the variables are.

    Args:
      net: as `create` gives it. An already fused net comes back unchanged.
      variables: its `{"params", "batch_stats"}`.

    Raises:
      ValueError: where the variables are not those of the net, naming the block.
      UsageError: for a block that no convolution equals.
      UsageError: where averaged parameters come with statistics that are not, or the reverse.
    """
    if "params" not in variables:
        raise ValueError(
            f'fuse takes {{"params", "batch_stats"}}; it was given {list(variables)[:3]}'
        )
    check_pair(variables)
    params, stats = dict(variables["params"]), variables.get("batch_stats", {})
    check_names(net, variables)
    widen = partial(jax.tree.map, lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)))
    with jax.default_matmul_precision("highest"):
        for name, block in net.blocks().items():
            kernel, bias = fuse_block(block, widen(params[name]), widen(stats.get(name, {})))
            # Under JAX_ENABLE_X64 the algebra's constants are wider than the parameters.
            dtype = accumulation_dtype(jnp.result_type(*jax.tree.leaves(params[name])))
            fused = {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}
            params[name] = {"conv": fused}
    for head in net.auxiliary_heads().values():  # training's alone
        params.pop(head, None)
    return net.clone(block=FusedConv), {"params": params}

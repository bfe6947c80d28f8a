"""Fusion as a pure function over `(net, variables)`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from repvgg_jax.nets import Net, Variables, check_arguments, check_names, check_pair
from repvgg_jax.ops.batch_norm import accumulation_dtype
from repvgg_jax.runtime.compilation import jit_once


def fuse(net: Net, variables: Variables) -> tuple[Net, dict[str, Any]]:
    """Returns the fused form of a net, which computes the same function with fewer layers.

    Every block of `net.plan()` becomes one convolution with a bias. Layers that are not in the plan
    (the head, squeeze-and-excite) are not changed. This is a pure function, so it can be compiled
    by `jax.jit` and differentiated with respect to the variables. It computes in float32, or wider
    if the variables are wider.

    Args:
      net: a net from `create`. An already fused net is returned unchanged.
      variables: its `{"params", "batch_stats"}`.

    Returns:
      The net with `block="fused"`, and its `{"params"}`, with `{"batch_stats"}` of layers outside
      the plan if there are any.

    Raises:
      ValueError: if the variables are not those of the net.
      UsageError: if the block is not equivalent to a convolution, if only the parameters or only
        the statistics are averaged, or if an argument is not a net or its variables.

    Examples:
      >>> net = create("repvgg_a0", num_classes=10)
      >>> variables = randomize(abstract(net), jax.random.key(0))
      >>> fused_net, fused_variables = fuse(net, variables)
      >>> fused_variables["params"]["stage1_block0"]["conv"]["kernel"].shape
      (3, 3, 48, 48)
    """
    check_arguments(net, variables, "rj.fuse(net, variables)")
    check_pair(variables)
    check_names(net, variables)
    return net.clone(block="fused"), _fused_variables(net, dict(variables))


@partial(jit_once, static_argnums=0)
def _fused_variables(net: Net, variables: Variables) -> dict[str, Any]:
    params, stats = dict(variables["params"]), dict(variables.get("batch_stats", {}))
    widen = partial(jax.tree.map, lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)))
    with jax.default_matmul_precision("highest"):
        for name, block in net.blocks().items():
            kernel, bias = block.fuse(widen(params[name]), widen(stats.pop(name, {})))
            # With JAX_ENABLE_X64, constants in `affine` are wider than the parameters.
            dtype = accumulation_dtype(jnp.result_type(*jax.tree.leaves(params[name])))
            fused = {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}
            params[name] = {"conv": fused}
    for head in net.auxiliary_heads().values():
        params.pop(head, None)
        stats.pop(head, None)
    return {"params": params} | ({"batch_stats": stats} if stats else {})

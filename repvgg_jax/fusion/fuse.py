"""Fusion as a pure function over `(net, variables)`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from repvgg_jax.nets import Net, Variables, check_names, check_pair
from repvgg_jax.ops.batch_norm import accumulation_dtype


def fuse(net: Net, variables: Variables) -> tuple[Net, dict[str, Any]]:
    """Returns the deploy form of a net, which computes the same function with fewer layers.

    Every block of `net.plan()` becomes one convolution with a bias; layers that the plan does not
    list (the head, squeeze-and-excite) are passed through as they are. Pure, and so `jit`-able and
    differentiable in the variables. Folding is done in float32, or wider if the variables are.

    Args:
      net: a net as `create` returns it. An already fused net comes back unchanged.
      variables: its `{"params", "batch_stats"}`.

    Returns:
      The net with `block="fused"`, and its `{"params"}`, with `{"batch_stats"}` of layers outside
      the plan if there are any.

    Raises:
      ValueError: if the variables are not those of the net, naming the block.
      UsageError: for a block that no convolution equals, or if averaged parameters come with
        statistics that are not, or the reverse.

    Examples:
      >>> net = create("repvgg_a0", num_classes=10)
      >>> variables = randomize(abstract(net), jax.random.key(0))
      >>> fused_net, fused_variables = fuse(net, variables)
      >>> fused_variables["params"]["stage1_block0"]["conv"]["kernel"].shape
      (3, 3, 48, 48)
    """
    if "params" not in variables:
        raise ValueError(
            f'fuse takes {{"params", "batch_stats"}}; it was given {list(variables)[:3]}'
        )
    check_pair(variables)
    check_names(net, variables)
    params, stats = dict(variables["params"]), dict(variables.get("batch_stats", {}))
    widen = partial(jax.tree.map, lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)))
    with jax.default_matmul_precision("highest"):
        for name, block in net.blocks().items():
            kernel, bias = block.fuse(widen(params[name]), widen(stats.pop(name, {})))
            # Under JAX_ENABLE_X64 the algebra's constants are wider than the parameters.
            dtype = accumulation_dtype(jnp.result_type(*jax.tree.leaves(params[name])))
            fused = {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}
            params[name] = {"conv": fused}
    for head in net.auxiliary_heads().values():  # they exist in training only
        params.pop(head, None)
        stats.pop(head, None)
    return net.clone(block="fused"), {"params": params} | ({"batch_stats": stats} if stats else {})

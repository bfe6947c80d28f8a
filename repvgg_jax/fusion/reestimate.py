"""BatchNorm statistics re-estimated on given batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.layers.norm import BN_MOMENTUM
from repvgg_jax.nets import Averaged, Net, Variables
from repvgg_jax.runtime.compilation import jit


def reestimate_batch_stats(
    net: Net, variables: Variables, batches: Iterable[Array]
) -> dict[str, Any]:
    """The pair with statistics measured anew for its parameters ("precise BatchNorm").

    mean = E[mean_b],  var = E[var_b + mean_b^2] - mean^2 over batches b of equal size, which is the
    variance over all of their pixels. Blocks that the net has frozen keep theirs.

    Args:
      net: in train form.
      variables: whose parameters are kept; averaged ones give statistics that go with them.
      batches: of normalised training images [batch, height, width, 3].

    Raises:
      UsageError: where there is no batch, or no BatchNorm.
    """
    params = variables["params"]
    if not variables.get("batch_stats"):
        raise UsageError("reestimate_batch_stats takes the train form, which has BatchNorms")
    stats = dict(variables["batch_stats"])
    frozen = {name: stats[name] for name in net.frozen_blocks()}
    zeros = jax.tree.map(jnp.zeros_like, stats)

    @jit
    def moments(images: Array) -> Any:
        # From zero, what BatchNorm's running average holds is (1 - momentum) of the batch's own.
        _, state = net.apply(
            {"params": params, "batch_stats": zeros | frozen},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        of_batch = jax.tree.map(lambda leaf: leaf / (1 - BN_MOMENTUM), state["batch_stats"])
        return _over_norms(
            lambda s: {"mean": s["mean"], "var": s["var"] + s["mean"] ** 2}, of_batch
        )

    total, count = zeros, 0
    for images in batches:
        total = jax.tree.map(jnp.add, total, moments(images))
        count += 1
    if not count:
        raise UsageError("reestimate_batch_stats: no batch to measure on")
    mean = jax.tree.map(lambda leaf: leaf / count, total)
    measured = _over_norms(
        # Rounding can take a constant channel's variance below zero.
        lambda s: {"mean": s["mean"], "var": jnp.maximum(s["var"] - s["mean"] ** 2, 0.0)},
        mean,
    )
    measured |= frozen
    averaged = isinstance(params, Averaged)
    return {"params": params, "batch_stats": Averaged(measured) if averaged else measured}


def _over_norms(function: Any, stats: Mapping[str, Any]) -> Any:
    """`function` of every BatchNorm's `{"mean", "var"}` in a tree of them."""
    if "var" in stats:
        return function(stats)
    return {name: _over_norms(function, tree) for name, tree in stats.items()}

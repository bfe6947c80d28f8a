"""Re-estimation of BatchNorm statistics."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.calibration import mean_over_images
from repvgg_jax.layers.norm import BN_MOMENTUM
from repvgg_jax.nets import Averaged, Net, Variables, check_arguments
from repvgg_jax.ops.algorithms import Batches, Images


def reestimate_batch_stats(net: Net, variables: Variables, batches: Batches) -> dict[str, Any]:
    """Returns the variables with BatchNorm statistics re-estimated on batches ("precise BN").

    mean = E[mean_b],  var = E[var_b + mean_b^2] - mean^2 over batches b, weighted by their numbers
    of images, which is the variance over all pixels of all batches. Dropout and stochastic depth
    are off, and frozen blocks keep their statistics.

    Args:
      net: a net in train form.
      variables: its variables. The parameters are not changed; if they are marked as averaged, the
        new statistics are too.
      batches: batches of normalized training images [batch, height, width, 3].

    Raises:
      UsageError: if there is no batch, or the net has no BatchNorm.
    """
    check_arguments(net, variables, "rj.reestimate_batch_stats(net, variables, batches)")
    net, params = net.without_dropout(), variables["params"]
    if not variables.get("batch_stats"):
        raise UsageError("reestimate_batch_stats needs variables with batch_stats (the train form)")
    stats = dict(variables["batch_stats"])
    frozen = {name: stats[name] for name in net.frozen_blocks() if name in stats}
    zeros = jax.tree.map(jnp.zeros_like, stats)

    @jax.jit
    def moments(images: Images) -> Any:
        # An update of zeros gives (1 - momentum) times the statistics of the batch.
        _, state = net.apply(
            {"params": params, "batch_stats": zeros | frozen},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        batch = jax.tree.map(lambda leaf: leaf / (1 - BN_MOMENTUM), state["batch_stats"])
        return _over_norms(lambda s: s | {"var": s["var"] + s["mean"] ** 2}, batch)

    mean = mean_over_images(moments, batches, "reestimate_batch_stats: no batches were given")
    measured = _over_norms(
        # Rounding can make the variance of a constant channel negative.
        lambda s: s | {"var": jnp.maximum(s["var"] - s["mean"] ** 2, 0.0)},
        mean,
    )
    measured |= frozen
    averaged = isinstance(params, Averaged)
    return {"params": params, "batch_stats": Averaged(measured) if averaged else measured}


def _over_norms(function: Any, stats: Mapping[str, Any]) -> Any:
    """Applies `function` to the `{"mean", "var"}` of every BatchNorm in a tree."""
    if "var" in stats:
        return function(stats)
    return {name: _over_norms(function, tree) for name, tree in stats.items()}

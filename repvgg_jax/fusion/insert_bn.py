"""BatchNorms for a fused net, so that it can be fine-tuned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import Variables, check_names
from repvgg_jax.ops.batch_norm import BN_EPSILON, accumulation_dtype
from repvgg_jax.runtime.compilation import jit


def insert_bn(
    net: nn.Module, variables: Variables, batches: Iterable[Array]
) -> tuple[nn.Module, dict[str, Any]]:
    """A fused net with a BatchNorm after each convolution, whose outputs stay the same.

    For a convolution's output y = conv(x) without its bias b, of mean mu and variance var over the
    batches: gamma = sqrt(var + epsilon), beta = mu + b, running statistics mu and var. In
    evaluation gamma (y - mu) / sqrt(var + epsilon) + beta = y + b, as before, and in training the
    batch's own statistics are near those. The result is of the block `plain`, without auxiliary
    heads, and fuses again. Measured in float32 or wider whatever the net's compute type.

    Args:
      net, variables: the fused pair.
      batches: of normalised images [batch, height, width, 3] to calibrate on.

    Raises:
      UsageError: where the net isn't fused, or there is no batch.
      ValueError: where the variables are not the net's.
    """
    if net.block is not FusedConv:
        raise UsageError("insert_bn takes a fused net; this one has its BatchNorms")
    check_names(net, variables)
    plan, wide = net.plan(), net.clone(dtype=accumulation_dtype(net.dtype))

    @jit
    def moments(images: Array) -> dict[str, tuple[Array, Array]]:
        _, state = wide.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: module.name in plan,
            mutable=["intermediates"],
        )
        outputs = {name: state["intermediates"][name]["__call__"][0] for name in plan}
        return {n: (y.mean((0, 1, 2)), (y**2).mean((0, 1, 2))) for n, y in outputs.items()}

    found = [moments(images) for images in batches]
    if not found:
        raise UsageError("insert_bn: no batch to calibrate on")
    means = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
    params, stats = dict(variables["params"]), {}
    for name in plan:
        convolution = variables["params"][name]["conv"]
        mu, square = means[name]
        var = jnp.maximum(square - mu**2, 0.0)
        k = net.kernel_size
        params[name] = {
            f"conv{k}": {"kernel": convolution["kernel"]},
            f"bn{k}": {"scale": jnp.sqrt(var + BN_EPSILON), "bias": mu},
        }
        stats[name] = {f"bn{k}": {"mean": mu - convolution["bias"], "var": var}}
    plain = net.clone(block=BLOCKS["plain"].block).without_auxiliary_heads()
    return plain, {"params": params, "batch_stats": stats}

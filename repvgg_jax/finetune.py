"""Starting from weights that are there: another head, another data set, or a fused net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import linen as nn
from jax import Array

from repvgg_jax.blocks import BLOCKS, FusedConv
from repvgg_jax.errors import UsageError
from repvgg_jax.fuse import check_names
from repvgg_jax.nets.repvgg import AUXILIARY_HEAD
from repvgg_jax.statistics import BN_EPSILON, accumulation_dtype

Variables = Mapping[str, Any]


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

    @jax.jit
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

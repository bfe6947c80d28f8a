"""Averages over training: EMA of parameters and statistics as one pair, and statistics anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.compilation import compiler_options
from repvgg_jax.errors import UsageError
from repvgg_jax.layers import BN_MOMENTUM

Variables = Mapping[str, Any]


@jax.tree_util.register_pytree_with_keys_class
class Averaged(dict):
    """A collection that goes only with its like: EMA parameters with EMA statistics.

    A dict in all else. Being a pytree of its own, it stays marked through `jax.tree.map`, `jit` and
    copies between devices, so that a mixed pair can be told from a true one.
    """

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """Children in the order of their names, as a dict's."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: Iterable[Any]) -> Averaged:
        """The inverse."""
        return cls(zip(names, children, strict=True))


def as_average(variables: Variables) -> dict[str, Averaged]:
    """The pair as the start of its own average."""
    return {name: Averaged(jax.tree.map(jnp.copy, tree)) for name, tree in variables.items()}


def update_average(average: Variables, variables: Variables, decay: float) -> dict[str, Averaged]:
    """average + (1 - decay) (variables - average), for parameters and statistics alike."""
    return {
        name: Averaged(
            jax.tree.map(
                lambda mean, new: mean + (1 - decay) * (new - mean),
                dict(average[name]),
                dict(variables[name]),
            )
        )
        for name in average
    }


def check_pair(variables: Variables) -> None:
    """Refuse averaged parameters with the raw run's statistics, or the reverse.

    The statistics of one are not those that the other's activations have, so the net is wrong in
    evaluation and its fused form as wrong.

    Raises:
      UsageError: where one of `params` and `batch_stats` is averaged and the other is not.
    """
    params, stats = variables["params"], variables.get("batch_stats", {})
    if stats and isinstance(params, Averaged) != isinstance(stats, Averaged):
        averaged, raw = ("params", "batch_stats")[:: 1 if isinstance(params, Averaged) else -1]
        raise UsageError(
            f"a mixed pair: {averaged} are averaged, {raw} are not; "
            "take both from the EMA, or reestimate_batch_stats for these parameters"
        )


def reestimate_batch_stats(
    net: nn.Module, variables: Variables, batches: Iterable[Array]
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

    @partial(jax.jit, compiler_options=compiler_options(jax.devices()))
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

"""Variables of a net: fresh, abstract, averaged, and checks of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import SingleDeviceSharding

from repvgg_jax.errors import UsageError
from repvgg_jax.nets._chain import Chain

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


def check_names(net: nn.Module, variables: Variables) -> None:
    """Raises ValueError unless the trees have just the names that the net's own would have."""

    def names(tree: Any) -> set[str]:
        paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path in paths}

    own = jax.eval_shape(lambda key: init(net, key), jax.random.key(0))
    expected, found = names(own), names({key: variables.get(key, {}) for key in own})
    if expected != found:
        raise ValueError(
            "the variables are not this net's: they lack "
            f"{', '.join(sorted(expected - found)[:3]) or 'nothing'} "
            f"({len(expected - found)} in all) and also hold "
            f"{', '.join(sorted(found - expected)[:3]) or 'nothing'} ({len(found - expected)})"
        )


def abstract_variables(net: nn.Module) -> dict[str, Any]:
    """Shapes and types of a net's variables, on this host's first device."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda key: init(net, key), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def init(
    net: nn.Module, key: Array, image_size: int | tuple[int, int] = 224, channels: int = 3
) -> dict[str, Any]:
    """Fresh `{"params", "batch_stats"}` of a net, on the default device.

    Args:
      net: as `create` or `fuse` gives it.
      key: a `jax.random.key`.
      image_size: pixels, one number or (height, width); the parameters don't depend on it.
      channels: of the images.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = jnp.zeros((1, height, width, channels))

    @jax.jit
    def fresh(key: Array, images: Array) -> dict[str, Any]:
        variables = net.init(key, images, train=False)
        return net.started(variables, key) if isinstance(net, Chain) else variables

    return fresh(key, images)

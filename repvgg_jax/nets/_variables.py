"""Variables of a net: initialization, abstract shapes, randomization, averages and checks."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Self
from zlib import crc32

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Sharding

from repvgg_jax.blocks.base import Variables
from repvgg_jax.errors import UsageError, described
from repvgg_jax.nets._base import Net
from repvgg_jax.nets._call_errors import check_variables
from repvgg_jax.runtime.compilation import jit_once


@jax.tree_util.register_pytree_with_keys_class
class Averaged(dict):
    """A dict of EMA parameters or EMA statistics, which are valid only together.

    It is a separate pytree type, so `jax.tree.map`, `jit` and copies between devices preserve the
    type, and `check_pair` can detect averaged parameters with raw statistics or vice versa.
    """

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """Returns the children sorted by name, as for a dict."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: Iterable[Any]) -> Self:
        """Returns the dict of the given names and children."""
        return cls(zip(names, children, strict=True))


def as_average(variables: Variables) -> dict[str, Averaged]:
    """Returns a copy of parameters and statistics, marked as an average, to initialize the EMA."""
    return {name: Averaged(jax.tree.map(jnp.copy, tree)) for name, tree in variables.items()}


def check_net(net: Any, call: str) -> None:
    """Raises UsageError unless `net` is a net; `call` is the call to be made."""
    if not isinstance(net, Net):
        raise UsageError(f"{call}: the net is {described(net)}; rj.create and rj.load return nets")


def check_arguments(net: Any, variables: Any, call: str) -> None:
    """Raises UsageError unless the arguments of a function are a net and variables."""
    check_net(net, call)
    check_variables(variables, call)


def check_pair(variables: Variables) -> None:
    """Raises UsageError without parameters, or if only they or only the statistics are averaged.

    The statistics of a mixed pair do not match the activations, so the outputs of the net and of
    its fused form would both be wrong.
    """
    if "params" not in variables:
        raise UsageError(
            'the variables have no "params"; pass {"params": ..., "batch_stats": ...}, as rj.init '
            "and rj.load return them"
        )
    params, stats = variables["params"], variables.get("batch_stats", {})
    kinds = ["averaged" if isinstance(tree, Averaged) else "raw" for tree in (params, stats)]
    if stats and kinds[0] != kinds[1]:
        raise UsageError(
            f"{kinds[0]} parameters do not match {kinds[1]} statistics; take both from the EMA, or "
            "compute statistics for these parameters with reestimate_batch_stats"
        )


def check_names(net: Net, variables: Variables) -> None:
    """Raises ValueError unless the variables have exactly the names of the net's variables."""

    def names(tree: Any) -> set[str]:
        paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path in paths}

    def listed(names: set[str]) -> str:
        return f"{', '.join(sorted(names)[:3]) or 'nothing'} ({len(names)} in all)"

    own = abstract(net)
    expected = names(own)
    given = names({key: variables.get(key, {}) for key in own})
    if expected != given:
        raise ValueError(
            f"the variables are not this net's: missing {listed(expected - given)}, unexpected "
            f"{listed(given - expected)}"
        )


def abstract(net: Net, sharding: Sharding | None = None) -> dict[str, Any]:
    """Returns the `{"params", "batch_stats"}` of a net as `jax.ShapeDtypeStruct`s.

    Args:
      net: a net from `create` or `fuse`.
      sharding: sharding of every leaf; None for no sharding.

    Examples:
      >>> abstract(create("repvgg_a0"))["params"]["head"]["bias"]
      ShapeDtypeStruct(shape=(1000,), dtype=float32)
    """
    shapes = jax.eval_shape(lambda key: init(net, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.update(sharding=sharding), shapes)


def _check_key(key: Any) -> None:
    """Raises UsageError unless `key` is a single key, of the new style or the old one."""
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    if dtype is not None and (
        (jnp.issubdtype(dtype, jax.dtypes.prng_key) and ndim == 0)
        or (dtype == jnp.uint32 and ndim == 1)
    ):
        return
    seed = key if isinstance(key, int) else 0
    raise UsageError(f"the key is {described(key)}; pass jax.random.key({seed})")


def randomize(variables: Variables, key: Array) -> dict[str, Any]:
    """Returns random variables that resemble those of a trained net.

    A freshly initialized BatchNorm is close to the identity and hides fusion bugs. Here, means and
    biases are drawn from N(0, 0.3^2), variances are exp(N(0, 0.5^2)), BatchNorm scales are of
    either sign with absolute values of at least 0.5, and kernels have variance 2 / fan_in.

    Args:
      variables: a tree of arrays or `jax.ShapeDtypeStruct`s; only shapes and types are used.
      key: a `jax.random.key`.

    Examples:
      >>> net = create("repvgg_a0", num_classes=10)
      >>> variables = randomize(abstract(net), jax.random.key(0))
      >>> bool((variables["params"]["stage0_block0"]["bn_kxk"]["scale"] < 0).any())
      True
    """
    check_variables(variables, "rj.randomize(variables, key)")
    _check_key(key)

    def draw(path: tuple[Any, ...], leaf: Any) -> Array:
        name = jax.tree_util.keystr(path)
        own_key = jax.random.fold_in(key, crc32(name.encode()))
        return _random_leaf(path[-1].key, tuple(leaf.shape), jnp.dtype(leaf.dtype), own_key)

    return jax.tree_util.tree_map_with_path(draw, dict(variables))


@partial(jit_once, static_argnums=(0, 1, 2))
def _random_leaf(name: str, shape: tuple[int, ...], dtype: Any, key: Array) -> Array:
    noise = jax.random.normal(key, shape)
    match name:
        case "var":
            noise = jnp.exp(0.5 * noise)
        case "scale":
            noise = jnp.sign(noise) * (0.5 + jnp.abs(noise))
        case "kernel":
            noise = noise * (2 / math.prod(shape[:-1])) ** 0.5
        case _:
            noise = 0.3 * noise
    return noise.astype(dtype)


def init(
    net: Net, key: Array, image_size: int | tuple[int, int] = 224, channels: int = 3
) -> dict[str, Any]:
    """Returns freshly initialized `{"params", "batch_stats"}` of a net, on the default device.

    Args:
      net: a net from `create` or `fuse`.
      key: a `jax.random.key`.
      image_size: side of the images in pixels, or (height, width); it does not affect the result.
      channels: number of channels of the images.

    Examples:
      >>> net = create("repvgg_a0", num_classes=10)
      >>> variables = init(net, jax.random.key(0), image_size=32)
      >>> variables["params"]["head"]["kernel"].shape
      (1280, 10)
    """
    check_net(net, "rj.init(net, key)")
    _check_key(key)
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(sides, Sequence) or len(sides) != 2:
        raise UsageError(
            f"image_size is {described(image_size)}; give the side in pixels or (height, width)"
        )
    return _fresh(net, key, (1, *sides, channels))


@partial(jit_once, static_argnums=(0, 2))
def _fresh(net: Net, key: Array, shape: tuple[int, ...]) -> dict[str, Any]:
    variables = net.init(key, jnp.zeros(shape), train=False)
    return net.reinitialized(variables, key)

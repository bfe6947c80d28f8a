"""Insertion of BatchNorms into a fused net, so that it can be fine-tuned."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from repvgg_jax.errors import UsageError
from repvgg_jax.fusion.calibration import mean_over_images
from repvgg_jax.nets import Net, Variables, check_arguments, check_names
from repvgg_jax.ops.algorithms import Batches, Images
from repvgg_jax.ops.batch_norm import accumulation_dtype


def insert_bn(net: Net, variables: Variables, batches: Batches) -> tuple[Net, dict[str, Any]]:
    """Inserts a BatchNorm after each convolution of a fused net without changing its outputs.

    Let y = conv(x) be the output of a convolution without its bias b, and mu and var the mean and
    variance of y over the batches. The BatchNorm has gamma = sqrt(var + epsilon), beta = mu + b and
    running statistics mu and var, so gamma (y - mu) / sqrt(var + epsilon) + beta = y + b in
    evaluation. In training, the statistics of a batch are close to mu and var. The resulting net
    has block "plain" and no auxiliary heads, and can be fused again. Its convolutions of class
    "conv", the last ones of Inception-ResNet's units, get no BatchNorm. Statistics are computed in
    float32 or wider, whatever the net's compute type.

    Args:
      net: a fused net.
      variables: variables of the fused net.
      batches: calibration batches of normalized images [batch, height, width, 3].

    Raises:
      UsageError: if the net is not fused, or there is no batch.
      ValueError: if the variables are not the net's.

    Examples:
      >>> net = create("repvgg_a0", num_classes=10)
      >>> fused_net, fused_variables = fuse(net, randomize(abstract(net), jax.random.key(0)))
      >>> images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
      >>> tunable_net, tunable_variables = insert_bn(fused_net, fused_variables, [images])
      >>> tunable_net.block
      'plain'
    """
    check_arguments(net, variables, "rj.insert_bn(net, variables, batches)")
    if not net.is_fused:
        raise UsageError(
            "insert_bn takes a fused net, but this net is in train form; fuse it first"
        )
    check_names(net, variables)
    plain_net = net.clone(block="plain").without_auxiliary_heads()
    names = [spec.name for spec in net.plan() if plain_net.block_of(spec) == "plain"]
    moments = _moments(net, variables, names, batches)
    params, stats = dict(variables["params"]), {}
    for name in (spec.name for spec in net.plan()):
        convolution = variables["params"][name]["conv"]
        if name not in names:
            params[name] = {"conv_kxk": convolution}
            continue
        mu, square = moments[name]
        var = jnp.maximum(square - mu**2, 0.0)
        params[name] = {
            "conv_kxk": {"kernel": convolution["kernel"]},
            "bn_kxk": {"scale": jnp.sqrt(var + net.bn_epsilon), "bias": mu},
        }
        stats[name] = {"bn_kxk": {"mean": mu - convolution["bias"], "var": var}}
    return plain_net, {"params": params, "batch_stats": stats}


def _moments(
    net: Net, variables: Variables, names: Collection[str], batches: Batches
) -> dict[str, tuple[Array, Array]]:
    """Returns name -> mean of y and of y^2 over the batches, of the outputs y of named blocks."""
    wide = net.clone(dtype=accumulation_dtype(net.dtype))

    @jax.jit
    def of_batch(images: Images) -> dict[str, tuple[Array, Array]]:
        _, state = wide.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: module.name in names,
            mutable=["intermediates"],
        )
        outputs = {name: state["intermediates"][name]["__call__"][0] for name in names}
        return {n: (y.mean((0, 1, 2)), (y**2).mean((0, 1, 2))) for n, y in outputs.items()}

    return mean_over_images(of_batch, batches, "insert_bn: no calibration batches were given")

"""The sum of RepVGG's normalized branches, computed from the first two moments of their input.

The 1x1 branch and the identity are linear in x, so their statistics follow from m = mean(x) and
C = cov(x). A 1x1 kernel W gives the mean W' m and the variance diag(W' C W); the identity gives m
and diag(C). Both branches together are one 1x1 convolution with kernel

  M = W diag(gamma_1x1 / sigma_1x1) + diag(gamma_identity / sigma_identity)

and a bias, so the output of each branch is neither computed nor saved for the backward pass. Values
and gradients equal those of separate branches up to rounding. The rounding error of the variance
W' C W is proportional to |W|' E[x x'] |W|, which is large if W cancels a component common to its
inputs. For example, if inputs are 10 c + 0.03 n, where all channels share c and n is noise, and the
columns of W sum to 0, the float32 error is 1e-2 of the sum, against 3e-5 for separate branches.

Images are [groups, images, height, width, channels], with statistics over each group. In einsums, n
is the group of images, p the pixel, g the group of the convolution, i and k are input channels
within that group, and o is the output channel within it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from repvgg_jax.ops.batch_norm import (
    BN_EPSILON,
    GroupedImages,
    GroupStatistic,
    accumulation_dtype,
    batch_norm_gradient,
    mean_and_variance,
    per_channel,
)
from repvgg_jax.ops.convolution import convolve, uses_onednn, xla_only
from repvgg_jax.runtime.devices import target


class Geometry(NamedTuple):
    """Convolution groups, type of the result, and algorithm (one of `convolution.ALGORITHMS`)."""

    groups: int
    dtype: Any
    algorithm: str
    epsilon: float = BN_EPSILON


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def sum_normalized_branches(
    x: GroupedImages,
    y: Float[Array, "groups images height width features"] | None,
    kernel: Float[Array, "1 1 cin_per_group features"],
    gammas: Mapping[str, Float[Array, " _"]],
    betas: Mapping[str, Float[Array, " _"]],
    geometry: Geometry,
) -> tuple[Float[Array, "groups images height width features"], dict[str, Any]]:
    """Returns BN(y) + BN(conv_1x1(x)) + BN(x) as in training, where y = conv_kxk(x).

    Args:
      x: images, already subsampled by the stride, [groups, images, height, width, cin].
      y: [groups, images, height, width, features]; None if there is no kxk branch.
      kernel: kernel of the 1x1 branch, [1, 1, cin / geometry.groups, features].
      gammas: scale [channels] of each branch's BatchNorm, for "kxk", "1x1" and "identity".
      betas: offset [channels] of each branch's BatchNorm.
      geometry: static options.

    Returns:
      The sum, and the mean and variance [groups, channels] of each branch, which are not
      differentiated.
    """
    return _forward(x, y, kernel, gammas, betas, geometry)[0]


def _forward(
    x: Array, y: Array | None, kernel: Array, gammas: Any, betas: Any, geometry: Geometry
) -> tuple[Any, Any]:
    w = _grouped(kernel[0, 0], geometry)
    mean = _grouped(x.mean((1, 2, 3), dtype=accumulation_dtype(x.dtype)), geometry)
    square = _gram(x, x, geometry) / (x[0].size // x.shape[-1])
    cov = square - jnp.einsum("ngi,ngk->nigk", mean, mean)
    linear = {
        "1x1": (jnp.einsum("ngi,igo->ngo", mean, w), jnp.einsum("igo,nigk,kgo->ngo", w, cov, w)),
        "identity": (mean, jnp.einsum("nigi->ngi", cov)),
    }
    # Rounding can make a variance negative.
    statistics = {
        name: (first.reshape(len(x), -1), jnp.maximum(second.reshape(len(x), -1), 0.0))
        for name, (first, second) in linear.items()
        if name in gammas
    }
    if y is not None:
        statistics["kxk"] = mean_and_variance(y)
    scales = _scales(gammas, statistics, geometry)
    # Rounded as in the product, so that the bias cancels the mean of the product exactly.
    m = _collapsed(w, scales, geometry).astype(x.dtype)
    center = jnp.einsum("ngi,nigo->ngo", mean, m.astype(mean.dtype))
    center = center.reshape(center.shape[0], -1)
    bias = per_channel(sum(betas.values()), center) - center
    z = _product(x, m, geometry) + per_channel(bias, x)
    if y is not None:
        scale = per_channel(scales["kxk"], y)
        z += (y - per_channel(statistics["kxk"][0], y)) * scale
    return (z.astype(geometry.dtype), statistics), (x, y, kernel, gammas, statistics, mean, cov)


def _backward(geometry: Geometry, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    x, y, kernel, gammas, statistics, mean, cov = saved
    dz, count = cotangents[0], x[0].size // x.shape[-1]
    w = _grouped(kernel[0, 0], geometry)
    scales = _scales(gammas, statistics, geometry)
    dbeta = dz.astype(accumulation_dtype(dz.dtype)).sum((1, 2, 3))
    # The gradient of M with respect to centered inputs.
    dm = _gram(x, dz, geometry) - jnp.einsum("ngi,ngo->nigo", mean, _grouped(dbeta, geometry))

    dgamma = {"1x1": jnp.einsum("igo,nigo->ngo", w, dm)}
    if "identity" in gammas:
        dgamma["identity"] = jnp.einsum("nigi->ngi", dm)
    dvar = {}
    for name, along in dgamma.items():
        variance = statistics[name][1]
        rsigma, along = lax.rsqrt(variance + geometry.epsilon), along.reshape(variance.shape)
        dgamma[name] = along * rsigma
        slope = jnp.where(variance > 0, -0.5 * scales[name] * rsigma**2 * along, 0.0)
        dvar[name] = _grouped(slope, geometry)

    dkernel = dm * _grouped(scales["1x1"], geometry)[:, None]
    dkernel += 2 * jnp.einsum("nigk,kgo,ngo->nigo", cov, w, dvar["1x1"])
    dcov = jnp.einsum("igo,ngo,kgo->nigk", w, dvar["1x1"], w)
    if "identity" in gammas:
        dcov += _diagonal(dvar["identity"])
    curve, m = 2 / count * dcov, _collapsed(w, scales, geometry)
    offset = jnp.einsum("ngo,nigo->ngi", _grouped(dbeta / count, geometry), m)
    offset += jnp.einsum("ngi,nigk->ngk", mean, curve)
    dx = _product(dz, m.transpose(0, 3, 2, 1), geometry) + _product(x, curve, geometry)
    dx -= per_channel(offset.reshape(offset.shape[0], -1), x)

    dy = None
    if y is not None:
        moments = statistics["kxk"]
        dy, dgamma["kxk"], _ = batch_norm_gradient(y, dz, gammas["kxk"], *moments, geometry.epsilon)
    return (
        dx.astype(x.dtype),
        dy,
        dkernel.sum(0).reshape(kernel.shape).astype(kernel.dtype),
        {name: dgamma[name].sum(0).astype(gamma.dtype) for name, gamma in gammas.items()},
        {name: dbeta.sum(0).astype(gamma.dtype) for name, gamma in gammas.items()},
    )


sum_normalized_branches.defvjp(_forward, _backward)


def _scales(gammas: Any, statistics: Any, geometry: Geometry) -> dict[str, GroupStatistic]:
    """Returns gamma / sigma of each branch, [n, channels]."""
    return {
        name: per_channel(gammas[name], var) * lax.rsqrt(var + geometry.epsilon)
        for name, (_, var) in statistics.items()
    }


def _collapsed(w: Array, scales: Mapping[str, Array], geometry: Geometry) -> Array:
    """Returns M [n, i, g, o], which combines the 1x1 branch and the identity."""
    m = w[None] * _grouped(scales["1x1"], geometry)[:, None]
    return m + _diagonal(_grouped(scales["identity"], geometry)) if "identity" in scales else m


def _diagonal(vector: Array) -> Array:
    """Returns the diagonal kernels [n, i, g, i] that scale each channel by [n, g, i]."""
    return jnp.eye(vector.shape[-1], dtype=vector.dtype)[None, :, None] * vector[:, None]


def _grouped(x: Array, geometry: Geometry) -> Array:
    """Reshapes [n, channels] to [n, g, channels / g], and images to [n, p, g, channels / g]."""
    pixels = () if x.ndim == 2 else (-1,)
    return x.reshape(len(x), *pixels, geometry.groups, x.shape[-1] // geometry.groups)


def _product(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Applies a 1x1 kernel [n, i, g, o] to each group of images; the result is float32 or wider."""
    features = geometry.groups * kernel.shape[-1]
    kernel = kernel.astype(x.dtype)
    if len(x) == 1 and uses_onednn(geometry.algorithm, x):
        flat = kernel.reshape(1, 1, -1, features)
        return convolve(x[0], flat, groups=geometry.groups, algorithm="onednn")[None]
    wide = dict(preferred_element_type=accumulation_dtype(x.dtype))
    if kernel.shape[0] == kernel.shape[2] == 1:
        # XLA:CPU would copy its operands if they had axes of size 1.
        z = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.reshape(-1, features), **wide)
    else:
        z = jnp.einsum("npgi,nigo->npgo", _grouped(x, geometry), kernel, **wide)
    return z.reshape(*x.shape[:-1], features)


def _gram(x: Array, d: Array, geometry: Geometry) -> Array:
    """Returns sum_p x[p, i] d[p, o] as [n, i, g, o], in float32 or wider."""
    if len(x) == 1 and uses_onednn(geometry.algorithm, x, d):
        cin = x.shape[-1] // geometry.groups
        conv = partial(convolve, x[0], groups=geometry.groups, algorithm="onednn")
        # The convolution is linear in its kernel, so its gradient is the same for any kernel.
        (gram,) = jax.vjp(conv, jnp.zeros((1, 1, cin, d.shape[-1]), x.dtype))[1](d[0])
        return gram.reshape(1, cin, geometry.groups, -1)
    wide = dict(preferred_element_type=accumulation_dtype(x.dtype), precision="highest")
    if len(x) == geometry.groups == 1:
        gram = jnp.matmul(x.reshape(-1, x.shape[-1]).T, d.reshape(-1, d.shape[-1]), **wide)
        return gram[None, :, None]
    return jnp.einsum("npgi,npgo->nigo", _grouped(x, geometry), _grouped(d, geometry), **wide)


def input_moments_are_faster(
    x: Float[Array, "batch height width cin"], strides: int, algorithm: str
) -> bool:
    """Returns True if `sum_normalized_branches` is faster than computing each branch separately.

    It computes five small matrix products instead of three but reads the images fewer times, which
    is faster on a CPU with many more pixels than channels. It is not faster if oneDNN computes the
    convolutions, or if XLA fuses the statistics into their input (docs/notes/speed.md).
    """
    if xla_only(x):  # the number of pixels may be unknown, or the 1x1 wanted as a convolution
        return False
    batch, height, width, cin = x.shape
    pixels = batch * -(-height // strides) * -(-width // strides)
    return target().is_one_cpu and not uses_onednn(algorithm, x) and pixels >= 16 * cin

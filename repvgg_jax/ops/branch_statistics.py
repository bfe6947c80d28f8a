"""The sum of RepVGG's normalised branches, from the first two moments of their input.

The 1x1 branch and the identity are linear in x, so their statistics follow from m = mean(x) and
C = cov(x): a 1x1 kernel W gives the mean W' m and the variance diag(W' C W), the identity m and
diag(C). Both collapse into one 1x1 kernel

  M = W diag(gamma1 / sigma1) + diag(gamma0 / sigma0)

and a bias, so that neither branch's output nor its normalisation is ever made, or kept for the
backward pass. Values and gradients are those of the branches themselves, up to rounding: the
variance W' C W has the rounding error of |W|' E[x x'] |W|, which is large beside it where W cancels
most of what its inputs have in common (inputs 10 c + 0.03 n of a common c and noise n, and columns
of W that sum to 0: an error of 1e-2 of the sum in float32, against 3e-5 of the branches).

Images are [groups, images, height, width, channels], a group being what a statistic is taken over.
In products: n group of images, p pixel; g group of the convolution, and within it i and k input
channels, o output channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from repvgg_jax.ops.batch_norm import (
    BN_EPSILON,
    accumulation_dtype,
    batch_norm_gradient,
    broadcast_to_images,
    mean_and_variance,
)
from repvgg_jax.ops.convolution import convolve, uses_onednn
from repvgg_jax.runtime.devices import on_one_cpu

Vectors = Mapping[str, Array]  # branch -> a number for each channel
Statistics = dict[str, tuple[Array, Array]]  # branch -> mean and variance [groups, channels]


class Geometry(NamedTuple):
    """What is known when tracing: the convolution's groups, the sum's type, the algorithm."""

    groups: int
    dtype: Any
    algorithm: str


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def sum_normalized_branches(
    x: Array, y: Array | None, kernel: Array, gammas: Vectors, betas: Vectors, geometry: Geometry
) -> tuple[Array, Statistics]:
    """BN(y) + BN(conv_1x1(x)) + BN(x) in training, y being the kxk convolution of x.

    Args:
      x: [groups, images, height, width, cin], at the pixels that the stride keeps.
      y: [groups, images, height, width, cout]; None without such a branch.
      kernel: [1, 1, cin / geometry.groups, cout].
      gammas, betas: [channels] of the branches "kxk", "1x1" and "identity", those that there are.
      geometry: of the convolution.

    Returns:
      the sum, and each branch's mean and variance, through which no gradient flows.
    """
    return _forward(x, y, kernel, gammas, betas, geometry)[0]


def _forward(
    x: Array, y: Array | None, kernel: Array, gammas: Vectors, betas: Vectors, geometry: Geometry
) -> tuple[Any, Any]:
    mean, cov = _moments(x, geometry)
    statistics = _statistics(mean, cov, _split(kernel, geometry))
    if "identity" not in gammas:
        del statistics["identity"]
    if y is not None:
        statistics["kxk"] = mean_and_variance(y)
    scales = _scales(gammas, statistics)
    # As rounded for the product, so that what the mean loses there is not added here.
    m = _collapsed(kernel, scales, geometry).astype(x.dtype)
    centre = jnp.einsum("ngi,nigo->ngo", mean, m.astype(mean.dtype))
    bias = sum(betas.values()) - centre.reshape(centre.shape[0], -1)
    z = _product(x, m, geometry) + broadcast_to_images(bias, x)
    if y is not None:
        z += (y - broadcast_to_images(statistics["kxk"][0], y)) * broadcast_to_images(
            scales["kxk"], y
        )
    return (z.astype(geometry.dtype), statistics), (x, y, kernel, gammas, statistics, mean, cov)


def _backward(geometry: Geometry, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    x, y, kernel, gammas, statistics, mean, cov = kept
    dz, count = cotangents[0], x[0].size // x.shape[-1]
    w, scales = _split(kernel, geometry), _scales(gammas, statistics)
    wide = dz.astype(accumulation_dtype(dz.dtype))
    dbeta = wide.sum((1, 2, 3))
    # Of M, for x less its mean.
    pulled = _gram(x, dz, geometry) - jnp.einsum("ngi,ngo->nigo", mean, _grouped(dbeta, geometry))

    dgamma = {"1x1": jnp.einsum("igo,nigo->ngo", w, pulled)}
    if "identity" in gammas:
        dgamma["identity"] = jnp.einsum("nigi->ngi", pulled)
    dvar = {}
    for name, along in dgamma.items():
        variance = statistics[name][1]
        rate, along = lax.rsqrt(variance + BN_EPSILON), along.reshape(variance.shape)
        dgamma[name] = along * rate
        slope = jnp.where(variance > 0, -0.5 * scales[name] * rate**2 * along, 0.0)
        dvar[name] = _grouped(slope, geometry)

    dkernel = pulled * _grouped(scales["1x1"], geometry)[:, None]
    dkernel += 2 * jnp.einsum("nigk,kgo,ngo->nigo", cov, w, dvar["1x1"])
    dcov = jnp.einsum("igo,ngo,kgo->nigk", w, dvar["1x1"], w)
    if "identity" in gammas:
        dcov += _diagonal(dvar["identity"])
    curve, m = 2 / count * dcov, _collapsed(kernel, scales, geometry)
    offset = jnp.einsum("ngo,nigo->ngi", _grouped(dbeta / count, geometry), m)
    offset += jnp.einsum("ngi,nigk->ngk", mean, curve)
    dx = _product(dz, m.transpose(0, 3, 2, 1), geometry) + _product(x, curve, geometry)
    dx -= broadcast_to_images(offset.reshape(offset.shape[0], -1), x)

    dy = None
    if y is not None:
        dy, dgamma["kxk"], _ = batch_norm_gradient(y, dz, gammas["kxk"], *statistics["kxk"])
    return (
        dx.astype(x.dtype),
        dy,
        dkernel.sum(0).reshape(kernel.shape).astype(kernel.dtype),
        {name: dgamma[name].sum(0).astype(gamma.dtype) for name, gamma in gammas.items()},
        {name: dbeta.sum(0).astype(gamma.dtype) for name, gamma in gammas.items()},
    )


sum_normalized_branches.defvjp(_forward, _backward)


def _moments(x: Array, geometry: Geometry) -> tuple[Array, Array]:
    """Mean [n, g, i] and covariance [n, i, g, k] of the input's channels."""
    mean = x.mean((1, 2, 3), dtype=accumulation_dtype(x.dtype))
    mean = _grouped(mean, geometry)
    square = _gram(x, x, geometry) / (x[0].size // x.shape[-1])
    return mean, square - jnp.einsum("ngi,ngk->nigk", mean, mean)


def _statistics(mean: Array, cov: Array, w: Array) -> Statistics:
    """Of the two linear branches, [n, channels]; rounding can take a variance below zero."""
    pairs = {
        "1x1": (
            jnp.einsum("ngi,igo->ngo", mean, w),
            jnp.einsum("igo,nigk,kgo->ngo", w, cov, w),
        ),
        "identity": (mean, jnp.einsum("nigi->ngi", cov)),
    }
    flat = {name: [v.reshape(v.shape[0], -1) for v in pair] for name, pair in pairs.items()}
    return {name: (mean, jnp.maximum(var, 0.0)) for name, (mean, var) in flat.items()}


def _scales(gammas: Vectors, statistics: Statistics) -> dict[str, Array]:
    """gamma / sigma of each branch, [n, channels]."""
    return {
        name: gamma * lax.rsqrt(statistics[name][1] + BN_EPSILON) for name, gamma in gammas.items()
    }


def _collapsed(kernel: Array, scales: Vectors, geometry: Geometry) -> Array:
    """M [n, i, g, o]: the 1x1 branch and the identity as one kernel."""
    m = _split(kernel, geometry) * _grouped(scales["1x1"], geometry)[:, None]
    return m + _diagonal(_grouped(scales["identity"], geometry)) if "identity" in scales else m


def _diagonal(vector: Array) -> Array:
    """[n, g, i] as the kernel [n, i, g, i] of a product by channel."""
    return jnp.eye(vector.shape[-1], dtype=vector.dtype)[:, None] * vector[:, None]


def _split(kernel: Array, geometry: Geometry) -> Array:
    """[1, 1, i, g o] -> [i, g, o]."""
    return kernel.reshape(kernel.shape[2], geometry.groups, -1)


def _grouped(vector: Array, geometry: Geometry) -> Array:
    """[n, channels] -> [n, g, channels of a group]."""
    return vector.reshape(vector.shape[0], geometry.groups, -1)


def _pixels(x: Array, geometry: Geometry) -> Array:
    """[n, images, height, width, channels] -> [n, p, g, channels of a group]."""
    return x.reshape(x.shape[0], -1, geometry.groups, x.shape[-1] // geometry.groups)


def _product(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """A 1x1 convolution with a kernel [n, i, g, o] for each group of images, in a wide type."""
    features = geometry.groups * kernel.shape[-1]
    kernel = kernel.astype(x.dtype)
    if len(x) == 1 and uses_onednn(geometry.algorithm, x):
        flat = kernel.reshape(1, 1, -1, features)
        return convolve(x[0], flat, groups=geometry.groups, algorithm="onednn")[None]
    wide = dict(preferred_element_type=accumulation_dtype(x.dtype))
    if kernel.shape[0] == kernel.shape[2] == 1:
        # Without the axes of size 1, since XLA's CPU backend would copy its operands for them.
        z = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.reshape(-1, features), **wide)
    else:
        z = jnp.einsum("npgi,nigo->npgo", _pixels(x, geometry), kernel, **wide)
    return z.reshape(*x.shape[:-1], features)


def _gram(x: Array, d: Array, geometry: Geometry) -> Array:
    """sum_p x[p, i] d[p, o], [n, i, g, o]: the gradient of such a kernel, in a wide type."""
    if len(x) == 1 and uses_onednn(geometry.algorithm, x, d):
        shape = (1, 1, x.shape[-1] // geometry.groups, d.shape[-1])
        gram = _kernel_gradient(x[0], d[0], shape, geometry.groups)
        return gram.reshape(1, shape[2], geometry.groups, -1)
    wide = dict(preferred_element_type=accumulation_dtype(x.dtype), precision="highest")
    if len(x) == geometry.groups == 1:
        gram = jnp.matmul(x.reshape(-1, x.shape[-1]).T, d.reshape(-1, d.shape[-1]), **wide)
        return gram[None, :, None]
    return jnp.einsum("npgi,npgo->nigo", _pixels(x, geometry), _pixels(d, geometry), **wide)


def _kernel_gradient(x: Array, d: Array, shape: tuple[int, ...], groups: int) -> Array:
    """Of a 1x1 convolution; it is linear in the kernel, so any kernel will do."""
    conv = partial(convolve, x, groups=groups, algorithm="onednn")
    return jax.vjp(conv, jnp.zeros(shape, x.dtype))[1](d)[0]


def input_moments_are_faster(x: Array, strides: int, algorithm: str) -> bool:
    """Whether `sum_normalized_branches` beats the branches one by one, for images [batch, h, w, cin].

    It has five small products where they have three, and fewer passes over the images: a gain on a
    CPU where pixels outnumber channels by far, but none where oneDNN computes the products' rivals,
    nor where a compiler fuses statistics into what makes their input (docs/notes/speed.md).

    Args:
      x: in the compute type.
      strides: of the block.
      algorithm: of its convolutions.
    """
    batch, height, width, cin = x.shape
    pixels = batch * -(-height // strides) * -(-width // strides)
    return on_one_cpu() and not uses_onednn(algorithm, x) and pixels >= 16 * cin

"""The algebra of fusion: what every branch of a block is in evaluation mode.

A branch maps x to conv(x, kernel) + bias. Such maps are closed under a following BatchNorm
(`fold_bn`), under sums (`add`), composition (`chain`) and stacking of channels (`concat`), so each
block's fusion is a sentence in these words. Kernels are HWIO: `[kh, kw, cin / groups, cout]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from repvgg_jax.ops.batch_norm import BN_EPSILON


@runtime_checkable
class Shaped(Protocol):
    """An array, or anything that says the shape of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Affine(NamedTuple):
    """x -> conv(x, kernel) + bias."""

    kernel: Float[Array, "kh kw cin_per_group cout"]
    bias: Float[Array, " cout"] | float = 0.0


def fold_bn(
    branch: Affine,
    params: Mapping[str, Float[Array, " cout"]],
    stats: Mapping[str, Float[Array, " cout"]],
    epsilon: float = BN_EPSILON,
) -> Affine:
    """The branch followed by its BatchNorm (RepVGG, arXiv 2101.03697, eq. 3).

    W' = W gamma / sigma,  b' = beta + (b - mu) gamma / sigma,  sigma = sqrt(var + epsilon).

    Args:
      branch: what the BatchNorm normalises.
      params: the BatchNorm's `scale` (gamma) and `bias` (beta).
      stats: its running `mean` (mu) and `var`.
      epsilon: added to the variance inside the root.
    """
    scale = params["scale"] / jnp.sqrt(stats["var"] + epsilon)
    return Affine(branch.kernel * scale, params["bias"] + (branch.bias - stats["mean"]) * scale)


def identity(like: Shaped) -> Affine:
    """x -> x as a kernel shaped as `like`: one at the centre, each channel to itself."""
    return _diagonal(
        like, jnp.zeros(like.shape[:2]).at[like.shape[0] // 2, like.shape[1] // 2].set(1)
    )


def average(like: Shaped) -> Affine:
    """The mean over the kernel's window, zeros of the padding included, as a kernel."""
    return _diagonal(like, jnp.full(like.shape[:2], 1 / (like.shape[0] * like.shape[1])))


def _diagonal(like: Shaped, window: Float[Array, "kh kw"]) -> Affine:
    """The same window from every channel to itself, nothing between channels."""
    group_width, features = like.shape[2:]
    if features % group_width:
        raise ValueError(f"no channel-preserving kernel has shape {tuple(like.shape)}")
    # Output channel o lies in group o // group_width, whose inputs are counted from 0 again.
    onto_itself = jnp.eye(group_width)[:, jnp.arange(features) % group_width]
    return Affine(window[:, :, None, None] * onto_itself)


def pad_to(size: tuple[int, int], branch: Affine) -> Affine:
    """The same map with a larger kernel: zeros around it, the centre kept.

    Raises:
      ValueError: where `size` is smaller than the kernel or of the other parity, which has no
        common centre.
    """
    margins = [large - small for large, small in zip(size, branch.kernel.shape[:2], strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(f"a {branch.kernel.shape[:2]} kernel cannot be centred in {tuple(size)}")
    pads = [(margin // 2, margin // 2) for margin in margins]
    return Affine(jnp.pad(branch.kernel, [*pads, (0, 0), (0, 0)]), branch.bias)


def add(*branches: Affine) -> Affine:
    """Parallel branches are one convolution, whose kernel and bias are the sums of theirs."""
    size = tuple(max(branch.kernel.shape[axis] for branch in branches) for axis in (0, 1))
    padded = [pad_to(size, branch) for branch in branches]
    return Affine(sum(b.kernel for b in padded), sum(b.bias for b in padded))


def concat(*branches: Affine) -> Affine:
    """Branches that read the same input and stack their outputs."""
    size = tuple(max(branch.kernel.shape[axis] for branch in branches) for axis in (0, 1))
    padded = [pad_to(size, branch) for branch in branches]
    biases = [jnp.broadcast_to(b.bias, b.kernel.shape[-1:]) for b in padded]
    return Affine(
        jnp.concatenate([b.kernel for b in padded], axis=-1),
        jnp.concatenate(biases, axis=-1),
    )


def chain(first: Affine, second: Affine, groups: int = 1) -> Affine:
    """`second` after `first`, both of `groups` groups, the second without padding.

    K[h] = sum_{a + b = h} K1[a] K2[b],  b = b2 + sum_{a} K2[a] b1: the full convolution of the two
    kernels, of size k1 + k2 - 1. For a 1x1 `first` that is DBB's transform III (arXiv 2103.13425,
    section 3.2). It equals the two layers where the second reads `first`'s own bias beyond the
    border, not zeros.
    """
    if groups > 1:
        kernels1 = jnp.split(first.kernel, groups, axis=-1)
        kernels2 = jnp.split(second.kernel, groups, axis=-1)
        biases1 = jnp.split(jnp.broadcast_to(first.bias, first.kernel.shape[-1:]), groups)
        biases2 = jnp.split(jnp.broadcast_to(second.bias, second.kernel.shape[-1:]), groups)
        pieces = zip(kernels1, biases1, kernels2, biases2, strict=True)
        return concat(*(chain(Affine(k1, b1), Affine(k2, b2)) for k1, b1, k2, b2 in pieces))
    (height, width), size = second.kernel.shape[:2], first.kernel.shape[:2]
    if size == (1, 1):
        taps = jnp.broadcast_to(first.kernel, (height, width, *first.kernel.shape[2:]))
        kernel = taps @ second.kernel
    else:
        kernel = sum(
            jnp.pad(
                first.kernel @ second.kernel[h, w],
                [(h, height - 1 - h), (w, width - 1 - w), (0, 0), (0, 0)],
            )
            for h in range(height)
            for w in range(width)
        )
    through = jnp.broadcast_to(first.bias, first.kernel.shape[-1:]) @ second.kernel.sum((0, 1))
    return Affine(kernel, second.bias + through)

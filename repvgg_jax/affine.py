"""Operations on affine maps x -> conv(x, kernel) + bias, from which each block's fusion is built.

In evaluation mode, every branch of a block is an affine map. Applying a BatchNorm to affine maps
(`fold_bn`), adding (`add`), composing (`chain`) or stacking them (`concat`) gives an affine map
again. Kernels are in HWIO order: `[kh, kw, cin / groups, cout]`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from repvgg_jax.ops.batch_norm import BN_EPSILON, per_channel


class Affine(NamedTuple):
    """The map x -> conv(x, kernel) + bias.

    Attributes:
      kernel: kernel in HWIO order.
      bias: bias of each output channel; 0 for no bias.
    """

    kernel: Float[Array, "kh kw cin_per_group cout"]
    bias: Float[Array, " cout"] | float = 0.0


def fold_bn(
    branch: Affine,
    params: Mapping[str, Float[Array, " cout"]],
    stats: Mapping[str, Float[Array, " cout"]],
    epsilon: float = BN_EPSILON,
) -> Affine:
    """Returns the branch followed by its BatchNorm (RepVGG, arXiv 2101.03697, eq. 3).

    W' = W gamma / sigma,  b' = beta + (b - mu) gamma / sigma,  sigma = sqrt(var + epsilon).

    Args:
      branch: affine map before the BatchNorm.
      params: `scale` (gamma) and `bias` (beta) of the BatchNorm.
      stats: running `mean` (mu) and `var` of the BatchNorm.
      epsilon: constant added to the variance inside the square root.

    Examples:
      >>> ones, zeros = jnp.ones(2), jnp.zeros(2)
      >>> branch = Affine(jnp.ones((1, 1, 3, 2)))
      >>> bn, stats = {"scale": 2 * ones, "bias": ones}, {"mean": zeros, "var": ones}
      >>> fold_bn(branch, bn, stats, epsilon=0.0).kernel[0, 0, 0]
      Array([2., 2.], dtype=float32)
    """
    scale = params["scale"] / jnp.sqrt(stats["var"] + epsilon)
    return Affine(
        branch.kernel * per_channel(scale, branch.kernel),
        params["bias"] + (branch.bias - stats["mean"]) * scale,
    )


def identity(like: Array | jax.ShapeDtypeStruct) -> Affine:
    """Returns the identity map x -> x as a kernel with the shape of `like`."""
    height, width = like.shape[:2]
    return _diagonal(like, jnp.zeros((height, width)).at[height // 2, width // 2].set(1))


def average(like: Array | jax.ShapeDtypeStruct) -> Affine:
    """Returns average pooling, which includes the zeros of the padding, as a kernel."""
    return _diagonal(like, jnp.full(like.shape[:2], 1 / (like.shape[0] * like.shape[1])))


def _diagonal(like: Array | jax.ShapeDtypeStruct, window: Float[Array, "kh kw"]) -> Affine:
    """Returns a kernel that applies `window` to every channel and does not mix channels."""
    group_width, features = like.shape[2:]
    if features % group_width:
        raise ValueError(f"shape {tuple(like.shape)}: cout must be a multiple of cin / groups")
    # Output channel o is in group o // group_width; input indices are relative to the group.
    onto_itself = jnp.eye(group_width)[:, jnp.arange(features) % group_width]
    return Affine(window[:, :, None, None] * onto_itself[None, None])


def pad_to(size: tuple[int, int], branch: Affine) -> Affine:
    """Returns the same map with its kernel zero-padded symmetrically to `size`.

    Raises:
      ValueError: if `size` is smaller than the kernel, or the two differ in parity.
    """
    margins = [large - small for large, small in zip(size, branch.kernel.shape[:2], strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(f"a {branch.kernel.shape[:2]} kernel cannot be centered in {tuple(size)}")
    pads = [(margin // 2, margin // 2) for margin in margins]
    return Affine(jnp.pad(branch.kernel, [*pads, (0, 0), (0, 0)]), branch.bias)


def add(*branches: Affine) -> Affine:
    """Returns the sum of parallel branches: the sums of their kernels and of their biases."""
    padded = _same_size(branches)
    return Affine(sum(b.kernel for b in padded), sum(b.bias for b in padded))


def concat(*branches: Affine) -> Affine:
    """Returns one map whose output is the outputs of all branches, concatenated by channel."""
    kernel = jnp.concatenate([branch.kernel for branch in _same_size(branches)], axis=-1)
    return Affine(kernel, jnp.concatenate([_bias_vector(branch) for branch in branches]))


def _same_size(branches: tuple[Affine, ...]) -> list[Affine]:
    """Returns the branches with all kernels padded to the largest size."""
    size = tuple(max(branch.kernel.shape[axis] for branch in branches) for axis in (0, 1))
    return [pad_to(size, branch) for branch in branches]


def _bias_vector(branch: Affine) -> Array:
    return jnp.broadcast_to(branch.bias, branch.kernel.shape[-1:])


def chain(first: Affine, second: Affine, groups: int = 1) -> Affine:
    """Returns the composition second(first(x)), where both maps have `groups` groups.

    K[h] = sum_{a + b = h} K1[a] K2[b],  b = b2 + sum_{a} K2[a] b1: the kernel is the full
    convolution of the two kernels and has size k1 + k2 - 1. If `first` is a 1x1, this is DBB's
    transform III (arXiv 2103.13425, section 3.2). To match the result at the border, the input of
    `second` must be padded with the bias of `first` instead of zeros.
    """
    if groups > 1:
        kernels1 = jnp.split(first.kernel, groups, axis=-1)
        kernels2 = jnp.split(second.kernel, groups, axis=-1)
        biases1 = jnp.split(_bias_vector(first), groups)
        biases2 = jnp.split(_bias_vector(second), groups)
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
    through = _bias_vector(first) @ second.kernel.sum((0, 1))
    return Affine(kernel, second.bias + through)

"""RepVGG's block (arXiv 2101.03697, section 3.2) and its fusion (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from repvgg_jax.affine import Affine, add, fold_bn, identity, pad_to
from repvgg_jax.errors import UsageError
from repvgg_jax.layers import Dtype, batch_norm, conv

BRANCHES = ("kxk", "1x1", "identity")


class RepVGGBlock(nn.Module):
    """BN(conv_kxk(x)) + BN(conv_1x1(x)) + BN(x); the nonlinearity is the net's.

    [batch, height, width, cin] -> [batch, ceil(height / strides), ceil(width / strides), features].
    The identity branch exists where the shapes allow it: stride 1 and cin == features. The 1x1
    shares the kxk's stride and groups.

    Attributes:
      features: output channels.
      strides, groups, dilation: of both convolutions (the 1x1 has nothing to dilate).
      kernel_size: the k of kxk, odd and at least 3.
      branches: those of `BRANCHES` that the block has; ablations leave some out.
      dtype: compute type; parameters and statistics are float32.

    Raises:
      UsageError: for an even or too small kernel, an unknown branch, or where no branch is left.
    """

    features: int
    strides: int = 1
    groups: int = 1
    kernel_size: int = 3
    dilation: int = 1
    branches: tuple[str, ...] = BRANCHES
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        self._check()
        k = self.kernel_size
        shared = dict(strides=self.strides, groups=self.groups, dtype=self.dtype)
        norm = partial(batch_norm, train, dtype=self.dtype)
        outputs = []
        if "kxk" in self.branches:
            y = conv(self.features, k, dilation=self.dilation, name=f"conv{k}", **shared)(x)
            outputs.append(norm(name=f"bn{k}")(y))
        if "1x1" in self.branches:
            y = conv(self.features, 1, name="conv1", **shared)(x)
            outputs.append(norm(name="bn1")(y))
        if "identity" in self.branches and self.strides == 1 and x.shape[-1] == self.features:
            outputs.append(norm(name="bn0")(x))
        if not outputs:
            raise UsageError(
                f"{self.name}: branches={self.branches} leaves nothing where stride or width "
                "changes; keep 'kxk' or '1x1'"
            )
        return sum(outputs[1:], outputs[0])

    def _check(self) -> None:
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise UsageError(
                f"kernel_size={self.kernel_size}: an odd number from 3 on has a centre"
            )
        if unknown := set(self.branches) - set(BRANCHES):
            raise UsageError(f"branches: {sorted(unknown)} unknown; choose from {BRANCHES}")


def fuse_repvgg(block: RepVGGBlock, params: Mapping, batch_stats: Mapping) -> Affine:
    """The sum of the branches' folded BatchNorms, each as a kxk kernel."""
    k = block.kernel_size
    branches = [
        fold_bn(
            Affine(params[f"conv{size}"]["kernel"]), params[f"bn{size}"], batch_stats[f"bn{size}"]
        )
        for size in (k, 1)
        if f"conv{size}" in params
    ]
    if "bn0" in params:
        like = jax.ShapeDtypeStruct((k, k, block.features // block.groups, block.features), float)
        branches.append(fold_bn(identity(like), params["bn0"], batch_stats["bn0"]))
    return pad_to((k, k), add(*branches))

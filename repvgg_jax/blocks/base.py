"""Base classes of train-time blocks, each of which fuses to one convolution."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float

from repvgg_jax.affine import Affine, add, fold_bn, identity
from repvgg_jax.errors import UsageError
from repvgg_jax.layers.conv import Conv, Dtype, Kernel, kernel_init
from repvgg_jax.layers.norm import BatchNorm
from repvgg_jax.ops.algorithms import Images, Outputs
from repvgg_jax.ops.batch_norm import BN_EPSILON
from repvgg_jax.ops.convolution import convolve

KernelSize = int | tuple[int, int]  # the side, or height and width
Variables = Mapping[str, Any]  # the variables of a block or a net, by name
KernelArray = Float[Array, "kh kw cin_per_group cout"]
FeatureMap = Float[Array, "batch height width channels"]


class Block(nn.Module):
    """The base class of blocks. A block is a layer of a net, without the ReLU that follows it.

    [batch, height, width, cin] -> [batch, ceil(height / strides), ceil(width / strides), features].
    In evaluation mode a block is affine, and `fuse` returns the equivalent convolution. All blocks
    use the same layer names: `conv_kxk`, `bn_kxk`, `conv_1x1`, `bn_1x1` and `bn_identity` for the
    branches, `bn` for a BatchNorm after their sum.

    Attributes:
      features: number of output channels.
      strides: stride of the fused convolution.
      groups: number of channel groups of the fused convolution.
      kernel_size: side of the fused kernel, an odd number; or its height and width, if `single`.
      dilation: dilation of the fused kernel.
      padding: "symmetric"; or "SAME" or "VALID", as in `ops.convolution.convolve`, if `single`.
      dtype: compute type; parameters and statistics are float32.
      bn_group_size: number of images per BatchNorm group in training; None for the whole batch.
      bn_epsilon: constant that BatchNorms add to the variance.
      conv_algorithm: algorithm of the convolutions, one of `ops.convolution.ALGORITHMS`.
      fusable: class attribute; False if the block is not equivalent to a convolution.
      single: class attribute; True if the train form is a single convolution. Only then may the
        kernel be non-square or the padding asymmetric: branches would read other pixels.

    Raises:
      UsageError: if the kernel size is even, or only a `single` block supports it or the padding.
    """

    fusable: ClassVar[bool] = True
    single: ClassVar[bool] = False

    features: int
    strides: int = 1
    groups: int = 1
    kernel_size: KernelSize = 3
    dilation: int = 1
    padding: str = "symmetric"
    dtype: Dtype = jnp.float32
    bn_group_size: int | None = None
    bn_epsilon: float = BN_EPSILON
    conv_algorithm: str = "auto"

    def __post_init__(self) -> None:
        sides = self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,)
        if not all(isinstance(side, int) and side % 2 == 1 for side in sides):
            raise UsageError(f"kernel_size={self.kernel_size!r}: must be odd")
        if not self.single and (len(sides) > 1 or self.padding != "symmetric"):
            raise UsageError(
                f"a layer with kernel_size={self.kernel_size} and padding={self.padding!r} cannot "
                f"be of class {type(self).__name__}, which takes a square kernel and symmetric "
                "padding; use block='plain'"
            )
        super().__post_init__()

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the convolution that is equivalent to the block in evaluation mode.

        This is a pure function of the variables that can be called on an unbound module. Kernel
        size, groups and branches without parameters are taken from the module's fields.

        Raises:
          UsageError: if the block is not `fusable`.
        """
        raise NotImplementedError

    def conv(
        self,
        x: Images,
        branch: str,
        size: int | tuple[int, int],
        use_bias: bool = False,
        init: Initializer = kernel_init,
    ) -> Outputs:
        """Applies `conv_<branch>` with the block's strides, groups and dilation."""
        return Conv(
            self.features,
            size,
            strides=self.strides,
            groups=self.groups,
            dilation=self.dilation,
            padding=self.padding,
            use_bias=use_bias,
            dtype=self.dtype,
            algorithm=self.conv_algorithm,
            init=init,
            name=f"conv_{branch}",
        )(x)

    def norm(self, x: FeatureMap, branch: str, train: bool) -> FeatureMap:
        """Applies the BatchNorm `bn_<branch>`, or `bn` for the empty branch name."""
        fields = (self.bn_group_size, self.dtype, self.bn_epsilon)
        return BatchNorm(train, *fields, name=_norm_name(branch))(x)

    def conv_bn(self, x: Images, branch: str, size: int | tuple[int, int], train: bool) -> Outputs:
        """Applies `conv_<branch>`, then `bn_<branch>`."""
        return self.norm(self.conv(x, branch, size), branch, train)

    def declare_kernel(
        self, branch: str, shape: tuple[int, ...], init: Initializer = kernel_init
    ) -> dict[str, KernelArray]:
        """Creates the kernel of `conv_<branch>` and returns `{"kernel": kernel}`."""
        return {"kernel": Kernel(shape, init, name=f"conv_{branch}")()}

    def convolve(self, x: Images, kernel: KernelArray, padding: str = "symmetric") -> Outputs:
        """Applies the block's convolution with the given kernel and padding."""
        return convolve(
            x,
            kernel,
            strides=self.strides,
            groups=self.groups,
            dilation=self.dilation,
            padding=padding,
            dtype=self.dtype,
            algorithm=self.conv_algorithm,
        )

    def fold_branches(self, params: Variables, batch_stats: Variables, *names: str) -> Affine:
        """Returns the sum of the named `conv_bn` branches that the block has.

        The name "identity" refers to the branch `norm(x, "identity")`.
        """
        branches = []
        for name in names:
            if name == "identity" and "bn_identity" in params:
                own = identity(self.identity_shape())
                branches.append(self.fold_norm(own, params, batch_stats, name))
            elif f"conv_{name}" in params:
                branches.append(self.fold_branch(params, batch_stats, name))
        return add(*branches)

    def fold_branch(self, params: Variables, batch_stats: Variables, branch: str) -> Affine:
        """Returns the affine map of `conv_bn` in evaluation mode."""
        return self.fold_norm(conv_kernel(params, branch), params, batch_stats, branch)

    def fold_norm(
        self, before: Affine, params: Variables, batch_stats: Variables, branch: str = ""
    ) -> Affine:
        """Returns `before` followed by `norm` in evaluation mode."""
        name = _norm_name(branch)
        return fold_bn(before, params[name], batch_stats[name], self.bn_epsilon)

    def kernel_shape(self, cin: int) -> tuple[int, int, int, int]:
        """Returns the HWIO shape of the fused kernel for `cin` input channels."""
        k = self.kernel_size
        return (k, k, cin // self.groups, self.features)

    def keeps_shape(self, cin: int) -> bool:
        """Returns True if a block with `cin` input channels can have an identity branch."""
        return self.strides == 1 and cin == self.features

    def bare_identity(self, params: Variables) -> list[Affine]:
        """Returns a list of the identity branch without a BatchNorm; empty if it does not exist."""
        cin = params["conv_1x1"]["kernel"].shape[2] * self.groups
        return [identity(self.identity_shape())] if self.keeps_shape(cin) else []

    def identity_shape(self) -> jax.ShapeDtypeStruct:
        """Returns the shape of the fused kernel of a block with `features` input channels."""
        return jax.ShapeDtypeStruct(self.kernel_shape(self.features), jnp.float32)


class KernelBlock(Block):
    """A block BN(conv(x, W)) whose kernel W is computed from several parameters at each step.

    Subclasses define `declare`, which creates the parameters, and `kernel`, which computes W from
    them. They inherit the forward pass and the fusion.
    """

    def declare(self, cin: int) -> dict[str, Any]:
        """Creates the parameters for `cin` input channels and returns them by name."""
        raise NotImplementedError

    def kernel(self, params: Variables) -> KernelArray:
        """Returns W [k, k, cin / groups, features], computed from the block's parameters."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        kernel = self.kernel(self.declare(x.shape[-1]))
        return self.norm(self.convolve(x, kernel), "", train)

    def fuse(self, params: Variables, batch_stats: Variables) -> Affine:
        """Returns the kernel with the BatchNorm folded into it."""
        return self.fold_norm(Affine(self.kernel(params)), params, batch_stats)


def conv_kernel(params: Variables, branch: str) -> Affine:
    """Returns `conv_<branch>` as an affine map."""
    return Affine(**params[f"conv_{branch}"])


def _norm_name(branch: str) -> str:
    return f"bn_{branch}" if branch else "bn"

"""ExpandNets: a convolution trained as a chain of linear layers (arXiv 1811.10495, section 3)."""

from functools import partial, reduce
from typing import Any

from repvgg_jax.affine import chain
from repvgg_jax.blocks.base import KernelArray, KernelBlock, Variables, conv_kernel

EXPANSION = 4  # the paper's r: hidden channels per input or output channel


class ExpandBlock(KernelBlock):
    """The block BN(conv(x, W)) with W = chain(K0, K1, ...), a chain of linear convolutions.

    The chain is equivalent to one convolution in training too, so the kernels are chained at each
    step and x is convolved once; each kernel gets the same gradient as in a chain of layers. The
    equivalent chain of layers pads only x, by the padding of W: padding each layer would discard
    outputs beyond the border. The layers have no biases, which the BatchNorm would cancel.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """Returns (kernel size, output channels) of each layer."""
        raise NotImplementedError

    def declare(self, cin: int) -> dict[str, Any]:
        """Creates the layers' kernels, `conv_0`, `conv_1`, ..."""
        inputs, params = cin, {}
        for index, (size, outputs) in enumerate(self.layers(cin)):
            shape = (size, size, inputs // self.groups, outputs)
            params[f"conv_{index}"] = self.declare_kernel(f"{index}", shape)
            inputs = outputs
        return params

    def kernel(self, params: Variables) -> KernelArray:
        """Returns the layers' kernels chained to one."""
        count = sum(name.startswith("conv_") for name in params)
        layers = (conv_kernel(params, f"{index}") for index in range(count))
        return reduce(partial(chain, groups=self.groups), layers).kernel


class ExpandCLBlock(ExpandBlock):
    """The "CL" block: 1x1 to r cin channels, kxk to r features, 1x1 to features, with r = 4.

    If the input has three channels (images), the first 1x1 keeps them, as in the paper.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """Returns (kernel size, output channels) of each layer."""
        wide = cin if cin == 3 else EXPANSION * cin
        return [(1, wide), (self.kernel_size, EXPANSION * self.features), (1, self.features)]


class ExpandCKBlock(ExpandBlock):
    """The "CK" block: a kxk as (k - 1) / 2 layers of 3x3 with r cin channels between them, r = 4.

    A 3x3 or 1x1 kernel cannot be expanded and remains one layer.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """Returns (kernel size, output channels) of each layer."""
        count = max(1, self.kernel_size // 2)
        size = min(3, self.kernel_size)
        return [(size, EXPANSION * cin)] * (count - 1) + [(size, self.features)]

"""ExpandNets: one convolution as a chain of linear ones (arXiv 1811.10495, section 3)."""

from functools import partial, reduce
from typing import Any

from repvgg_jax.affine import chain
from repvgg_jax.blocks.base import KernelArray, KernelBlock, Variables, conv_kernel

EXPANSION = 4  # the paper's r: hidden channels per input or output channel


class ExpandBlock(KernelBlock):
    """BN(conv(x, W)) with W = chain(K0, K1, ...): convolutions with nothing between them.

    Such layers are one convolution in training too, so their kernels are chained at each step and
    the image is convolved once; each kernel has the gradient that it has as a layer. Layer by
    layer, x would be padded once, by what W needs: padding each layer cuts off what the one before
    sends beyond the border. No layer has a bias, which the BatchNorm would remove.
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
    """1x1 to r cin channels, kxk to r features, 1x1 to features ("CL"); r = 4.

    On images, the 1x1 keeps their three channels, as the paper's first layer does.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """Returns (kernel size, output channels) of each layer."""
        wide = cin if cin == 3 else EXPANSION * cin
        return [(1, wide), (self.kernel_size, EXPANSION * self.features), (1, self.features)]


class ExpandCKBlock(ExpandBlock):
    """A kxk as (k - 1) / 2 layers of 3x3, with r cin channels between them ("CK"); r = 4.

    A 3x3 or 1x1 cannot be expanded: it is one layer.
    """

    def layers(self, cin: int) -> list[tuple[int, int]]:
        """Returns (kernel size, output channels) of each layer."""
        count = max(1, self.kernel_size // 2)
        size = min(3, self.kernel_size)
        return [(size, EXPANSION * cin)] * (count - 1) + [(size, self.features)]

"""The contract of a block: affine in evaluation mode, and equal to its fused form."""

import dataclasses

import jax
import jax.numpy as jnp

from repvgg_jax.blocks.base import Block
from repvgg_jax.blocks.fused import FusedConv
from repvgg_jax.blocks.registry import BLOCKS
from repvgg_jax.fusion.verify import relative_error
from tests.support.variables import random_images, randomised

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
# cin, features, strides, groups, kernel_size, dilation, (height, width), dtype: every value
# appears at least once, including those of depthwise blocks and the stem.
CASES = [
    (8, 8, 1, 1, 3, 1, (7, 6), "float64"),
    (8, 16, 2, 2, 3, 1, (8, 5), "float32"),
    (8, 8, 1, 8, 5, 2, (6, 7), "float64"),
    (3, 8, 2, 1, 5, 1, (5, 8), "float64"),
    (8, 8, 1, 8, 3, 1, (1, 3), "float32"),
    (16, 8, 1, 4, 1, 1, (4, 5), "float64"),
]


def build(
    name, cin, features, strides, groups, kernel_size, dilation, size, dtype, padding="symmetric"
):
    block = BLOCKS[name](
        features=features,
        strides=strides,
        groups=groups,
        kernel_size=kernel_size,
        dilation=dilation,
        padding=padding,
        bn_epsilon=1e-2,  # not the default, which a fault could use
        dtype=jnp.dtype(dtype).type,
    )
    x = random_images(3, *size, cin, dtype=dtype)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x))
    return block, {"batch_stats": {}} | randomised(shapes, 1, dtype), x


def check_block(name, case):
    with jax.enable_x64(True):
        block, variables, x = build(name, *case)
        names = {field.name for field in dataclasses.fields(Block)} - {"parent", "name"}
        plain = FusedConv(**{name: getattr(block, name) for name in names})

        @jax.jit
        def errors(variables, x):
            combined = jnp.concatenate([x, x[:1] + x[1:2] - x[2:]])
            y = block.apply(variables, combined)
            affine = relative_error(y[3:], (y[0] + y[1] - y[2])[None])
            if not block.fusable:
                return affine, None
            kernel, bias = block.fuse(variables["params"], variables["batch_stats"])
            fused = {"params": {"conv": {"kernel": kernel, "bias": bias}}}
            return affine, relative_error(y, plain.apply(fused, combined))

        affine, fusing = errors(variables, x)
    tolerance = TOLERANCE[case[7]]
    if fusing is None:
        assert affine > 1e-2, f"{name} is affine, so it can be fused"
    else:
        assert affine < 10 * tolerance
        assert fusing < tolerance

"""Reference convolutions and error measures."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from jax import lax

# Unoptimized code, since compiling these small programs takes most of the time.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def direct(x, kernel, strides=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(kernel.shape[0] // 2,) * 2, (kernel.shape[1] // 2,) * 2],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def passes(conv, x, kernel, dy):
    """Returns the output and both gradients."""

    @quick
    def run(x, kernel, dy):
        y, back = jax.vjp(conv, x, kernel)
        return y, *back(dy)

    return run(x, kernel, dy)


def errors(found, expected):
    """Returns each pass's largest error relative to its largest value."""
    pairs = zip(found, expected, strict=True)
    return [float(np.abs(f - e).max() / np.abs(e).max()) for f, e in pairs]

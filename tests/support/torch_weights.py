"""Nets and weights for tests of PyTorch import and export."""

import jax
import numpy as np
import pytest
import torch

import repvgg_jax as rj
from repvgg_jax.nets import abstract

TINY = dict(num_classes=5, widths=(16, 16, 24, 24, 32), depths=(1, 2, 1, 3, 2))


def noise_for(net):
    """Returns distinct values of both signs in the net's shapes, since transfer only moves them."""
    shapes = abstract(net)
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes)


def tiny(name="repvgg_a0", **overrides):
    net = rj.create(name, **{**TINY, **overrides})
    return net, noise_for(net)


def tensors(state_dict):
    return {name: torch.from_numpy(array) for name, array in state_dict.items()}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def refusal(call, *arguments, **keywords):
    with pytest.raises(rj.UsageError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def randomize(module, seed=0):
    """Draws all weights and statistics of a module; BatchNorm scales have both signs."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.ndim == 1 and value.is_floating_point():
            value.normal_(0, 0.5, generator=generator)
    return module.eval()

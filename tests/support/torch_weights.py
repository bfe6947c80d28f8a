"""Nets and weights for tests of PyTorch import and export."""

import jax
import numpy as np
import pytest
import torch

import repvgg_jax as rj
from experiments.reference.rounding import agree, depend_on_images, errors
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.nets import abstract
from repvgg_jax.runtime.compilation import jit_once

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


def assert_same_logits(module, images, *forms):
    """Compares the logits of nets and their variables with those of a PyTorch module."""
    found = errors(module, images, *(logits(*form, images) for form in forms))
    assert agree(*found), f"errors there and here: {found}"


def logits(net, variables, images):
    found = np.asarray(jit_once(net.apply)(variables, images))
    assert depend_on_images(found)
    return found


def assert_exported(net, module, layout):
    """Compares the weights of a module, imported and exported again, with themselves."""
    exported = to_torch(net, from_torch(net, module.state_dict()), layout)
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(exported.pop(key), value.numpy())
    assert not exported

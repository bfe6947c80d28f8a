"""Randomized variables, which reveal errors that fresh BatchNorms hide."""

from zlib import crc32

import jax
import numpy as np

from repvgg_jax.nets import abstract


def randomised(variables, seed, dtype=None):
    """Returns the tree with noise on every leaf: positive variances, gammas of both signs.

    NumPy draws it from the seed and the leaf's name, so that nothing is compiled. Leaves that are
    `jax.ShapeDtypeStruct`s count as zeros.
    """

    def noise(path, leaf):
        rng = np.random.default_rng([seed, crc32(jax.tree_util.keystr(path).encode())])
        draw = rng.normal(size=leaf.shape)
        if path[-1].key == "var":
            value = np.exp(0.5 * draw)
        elif path[-1].key == "scale":
            value = np.sign(draw) * (0.5 + np.abs(draw))
        elif path[-1].key == "kernel":
            value = draw * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        else:
            value = 0.3 * draw
        return jax.numpy.asarray(value.astype(dtype or leaf.dtype))

    return jax.tree_util.tree_map_with_path(noise, variables)


def random_variables(net, seed, image_size=32):
    """Returns randomized variables of a net."""
    shapes = abstract(net)
    return randomised(shapes, seed)


def random_images(*shape, seed=0, dtype="float32"):
    """Returns images of standard normal pixels."""
    return jax.numpy.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))

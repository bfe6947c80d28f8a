"""Variables as training leaves them: what a fresh BatchNorm hides, these show."""

from zlib import crc32

import jax
import jax.numpy as jnp


def randomised(variables, key, dtype=None):
    """The same tree with noise on every leaf: variances positive, gammas of both signs."""

    def noise(path, leaf):
        dtype_ = dtype or leaf.dtype
        subkey = jax.random.fold_in(key, crc32(jax.tree_util.keystr(path).encode()))
        draw = jax.random.normal(subkey, leaf.shape, dtype_)
        if path[-1].key == "var":
            return jnp.exp(0.5 * draw)
        if path[-1].key == "scale":
            return jnp.sign(draw) * (0.5 + jnp.abs(draw))
        return leaf.astype(dtype_) + 0.3 * draw

    return jax.tree_util.tree_map_with_path(noise, variables)

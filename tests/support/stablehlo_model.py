"""A tiny StableHLO file, and what it computes."""

import jax

import repvgg_jax as rj
from repvgg_jax.data.images import normalize
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.stablehlo_file import export_stablehlo
from tests.support.variables import random_variables

NET = rj.create("repvgg_a0", num_classes=3, depths=(1,), widths=(4,), strides=(2,), block="fused")


def write_stablehlo(path, **values):
    """Writes the file with metadata of the given values; returns its function of uint8 images."""
    metadata, variables = Metadata(image_size=8, **values), random_variables(NET, 0)
    export_stablehlo(NET, variables, path, metadata=metadata, platforms=["cpu"])

    @jax.jit
    def probabilities(images):
        images = normalize(images, metadata.mean, metadata.std)
        return jax.nn.softmax(NET.apply(variables, images, train=False))

    return probabilities

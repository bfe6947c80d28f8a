"""Opens an exported StableHLO file as a classifier, run by JAX."""

from pathlib import Path

import jax
import numpy as np
from jax import Array

from repvgg_jax.data.images import normalize
from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.export.stablehlo_file import read_stablehlo
from repvgg_jax.runtime.devices import available_devices
from repvgg_jax.serve.model import (
    CPU_BATCH,
    DEVICE_BATCH,
    Model,
    eval_transform,
    file_description,
    names_in_file,
)
from repvgg_jax.training.prediction import batch_shape


def open_stablehlo(path: Path) -> Model:
    """Returns the classifier in a StableHLO file, whose header lies beside it.

    Its batches are padded to a power of two of images, so that few programs are compiled.

    Raises:
      UsageError: if the file or its header cannot be read, it holds no weights, or it has more
        class names than outputs.
    """
    exported, metadata = read_stablehlo(path)
    if len(exported.in_avals) != 1:
        raise UsageError(f'{path} holds no weights; export it with weights="inside"')

    most = CPU_BATCH if available_devices()[0].platform == "cpu" else DEVICE_BATCH

    @jax.jit
    def probabilities(images: Array) -> Array:
        if not metadata.preprocess:
            images = normalize(images, metadata.mean, metadata.std)
        return jax.nn.softmax(exported.call(images))

    def run(images: np.ndarray) -> np.ndarray:
        count = len(images)
        padded = np.pad(images, [(0, batch_shape(count, most) - count), *[(0, 0)] * 3])
        return np.asarray(probabilities(padded))[:count]

    side = metadata.image_size

    def failed(error: Exception) -> UsageError:
        return UsageError(f"{path} does not run on this machine ({one_line(error)})")

    with reraise(Exception, failed):  # such as of a program for other platforms
        _, outputs = jax.eval_shape(probabilities, np.zeros((1, side, side, 3), np.uint8)).shape
    names = names_in_file(metadata, outputs, path)
    description = file_description(path, metadata)
    return Model(description, names, eval_transform(metadata), run, most, compiles=True)

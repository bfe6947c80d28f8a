"""Export of the variables themselves as safetensors, with names and layouts of this package."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.stablehlo_file import flat_arrays
from repvgg_jax.export.verification import Export, Logits, package, prepare
from repvgg_jax.nets import Net, Variables
from repvgg_jax.runtime.compilation import jit_once


def export_safetensors(
    net: Net,
    variables: Variables,
    path: str | Path,
    *,
    metadata: Metadata | None = None,
    images: Any = None,
    allow_train_form: bool = False,
) -> Metadata:
    """Writes the variables of a net as a safetensors file, with the metadata in its header.

    The names are the paths in the variables, such as "params/head/kernel", and the layouts are
    JAX's: kernels are [height, width, in / groups, out], dense ones [in, out]. The file has no
    program: it is the archive of the weights, and the first argument of the program that
    `rj.export.stablehlo(..., weights="argument")` writes. For PyTorch, take `rj.export.torch`.

    Args:
      net: the fused form.
      variables: its variables.
      path: file to write, such as "model.safetensors".
      metadata: class names, normalization and size of the images; by default no names, and
        ImageNet's normalization and 224 pixels.
      images: pixels, uint8 [count, side, side, 3], random if None. Four verify the file.
      allow_train_form: True to export a net that is not fused.

    Returns:
      The metadata in the file, with the relative error of the logits of its weights.

    Raises:
      UsageError: if an argument is invalid, the net is in train form, writing fails, or the package
        safetensors is missing.
      RunError: if the net computes something else with the weights in the file.

    Example:
      >>> net, variables = load("runs/b1", fused=True)  # doctest: +SKIP
      >>> safetensors(net, variables, "b1.safetensors").export_error  # doctest: +SKIP
      0.0
    """
    safetensors = package("safetensors.numpy")
    metadata = dataclasses.replace(metadata or Metadata(), preprocess=False)  # no program does it
    source, path = prepare(net, variables, path, metadata, images, allow_train_form)
    arrays = flat_arrays(source.variables)

    def save(draft: Path, metadata: Metadata) -> None:
        # `save_file` would make the file unreadable for other users.
        draft.write_bytes(safetensors.save(arrays, metadata.to_strings()))

    return source.write(path, save, partial(_logits, source, safetensors))


def _logits(source: Export, safetensors: Any, path: Path) -> Logits:
    arrays = {name: jnp.asarray(array) for name, array in safetensors.load_file(path).items()}
    variables = unflatten_dict(arrays, sep="/")
    compiled = jit_once(lambda variables, images: source(variables, images))

    def logits(images: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(compiled(variables, images))

    return logits

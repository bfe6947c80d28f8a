"""Export of the variables themselves as safetensors, with names and layouts of this package."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.stablehlo_file import flat_arrays
from repvgg_jax.export.verification import Export, Logits, check_extension, import_package, prepare
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
      images: at least four images, uint8 [count, side, side, 3]; the first four verify the file.
        Random if None.
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
    safetensors = import_package("safetensors.numpy")
    if metadata is not None and metadata.preprocess:
        raise UsageError("metadata.preprocess=True: a file of arrays normalizes nothing; unset it")
    check_extension(path, ".safetensors")
    source, path = prepare(net, variables, path, metadata, images, allow_train_form)
    arrays = flat_arrays(source.variables)

    def save(draft: Path, metadata: Metadata) -> None:
        # `save_file` would make the file unreadable for other users.
        draft.write_bytes(safetensors.save(arrays, metadata.to_strings()))

    return source.write(path, save, partial(_logits, source))


def read_safetensors(path: str | Path) -> tuple[Variables, Metadata]:
    """Returns the variables and the metadata in a file of `export_safetensors`.

    Raises:
      UsageError: if the file cannot be read, or it is not one of this package.
    """
    safetensors = import_package("safetensors")

    def failed(error: Exception) -> UsageError:
        return UsageError(f"{path} cannot be read as a safetensors file ({one_line(error)})")

    with reraise(Exception, failed), safetensors.safe_open(path, framework="numpy") as file:
        strings = file.metadata() or {}
        arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    metadata = Metadata.from_strings(strings, str(path))
    return unflatten_dict(arrays, sep="/"), metadata


def _logits(source: Export, path: Path) -> Logits:
    variables, _ = read_safetensors(path)
    compiled = jit_once(lambda variables, images: source(variables, images))

    def logits(images: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(compiled(variables, images))

    return logits

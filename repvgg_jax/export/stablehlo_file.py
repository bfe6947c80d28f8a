"""Export as StableHLO by `jax.export`, with a JSON header beside the file."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import Array, export

from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.verification import Export, Logits, check_extension, prepare
from repvgg_jax.nets import Net, Variables
from repvgg_jax.runtime.devices import compiling_for
from repvgg_jax.runtime.files import local_path, read_json, write_json

PLATFORMS = ("cpu", "cuda", "tpu")
INSIDE, ARGUMENT = "inside", "argument"


def export_stablehlo(
    net: Net,
    variables: Variables,
    path: str | Path,
    *,
    metadata: Metadata | None = None,
    images: Any = None,
    weights: str = INSIDE,
    platforms: Sequence[str] = PLATFORMS,
    dynamic_size: bool = False,
    allow_train_form: bool = False,
) -> Metadata:
    """Writes a net as a StableHLO program for any batch size, which needs only JAX to run.

    `jax.export.deserialize` reads the file. The header `<path>.json` beside it has the metadata,
    the date, the versions, and the SHA-256 of the file. All convolutions are XLA's, in float32.

    Args:
      net: the fused form.
      variables: its variables.
      path: file to write, such as "model.stablehlo".
      metadata: class names, normalization and size of the images; by default no names, and
        ImageNet's normalization and 224 pixels. If its `preprocess` is True, the program takes
        uint8 images, and normalizes them.
      images: at least four images, uint8 [count, side, side, 3]; the first four verify the file.
        Random if None.
      weights: "inside" to store them in the program; "argument" to take them as its first
        argument, a dict of arrays as in the file of `rj.export.safetensors`, so that several
        checkpoints share one program of a few kilobytes.
      platforms: platforms that can run the program.
      dynamic_size: True to accept any height and width too. The file is verified at
        `metadata.image_size` and at a larger size.
      allow_train_form: True to export a net that is not fused.

    Returns:
      The metadata in the header, with the relative error of the logits of the file.

    Raises:
      UsageError: if an argument is invalid, the net is in train form, it depends on the size of
        the batch, or on that of the image although that may vary, or writing fails.
      RunError: if the program does not compute what the net computes.

    Example:
      >>> net, variables = load("runs/b1", fused=True)  # doctest: +SKIP
      >>> stablehlo(net, variables, "b1.stablehlo").export_error  # doctest: +SKIP
      0.0
    """
    if weights not in (INSIDE, ARGUMENT):
        raise UsageError(f"weights={weights!r}: choose {INSIDE!r} or {ARGUMENT!r}")
    _check_platforms(platforms)
    check_extension(path, ".stablehlo")
    source, path = prepare(net, variables, path, metadata, images, allow_train_form)
    exported = _exported(source, weights, platforms, dynamic_size)
    if dynamic_size:
        source.check_larger(_logits(exported, source, weights))
    program = bytes(exported.serialize())
    header = {
        "input": {"images": str(exported.in_avals[-1]), "layout": "NHWC", "colors": "RGB"},
        "output": {"logits": str(exported.out_avals[0])},
        "weights": weights,
        "platforms": list(exported.platforms),
        "sha256": hashlib.sha256(program).hexdigest(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
    }

    def save(draft: Path, metadata: Metadata) -> None:
        draft.write_bytes(program)
        write_json(_header(draft), header | {"metadata": metadata.to_strings()})

    def load(draft: Path) -> Logits:
        return _logits(read_stablehlo(draft)[0], source, weights)

    return source.write(path, save, load)


def _check_platforms(platforms: Sequence[str]) -> None:
    """Raises UsageError unless the platforms are known, and this machine's is among them."""
    here, known = export.default_export_platform(), (*PLATFORMS, "rocm")
    if isinstance(platforms, str) or here not in platforms or not {*platforms} <= {*known}:
        raise UsageError(
            f"platforms={platforms!r}: give a list of some of {', '.join(known)} that has "
            f"{here!r}, on which the file is verified"
        )


def _exported(
    source: Export, weights: str, platforms: Sequence[str], dynamic_size: bool
) -> export.Exported:
    def run(flat: dict[str, Array], images: Array) -> Array:
        variables = {name: jnp.asarray(array) for name, array in flat.items()}
        return source(unflatten_dict(variables, sep="/"), images)

    size = source.metadata.image_size
    sides = ("height", "width") if dynamic_size else (size, size)
    shape = export.symbolic_shape(f"batch, {sides[0]}, {sides[1]}, 3")
    images = jax.ShapeDtypeStruct(shape, source.dtype)
    arrays = flat_arrays(source.variables)

    def failed(error: Exception) -> UsageError:
        options = f" with dynamic_size={dynamic_size} for {', '.join(platforms)}"
        return UsageError(f"the net cannot be exported{options} ({one_line(error)})")

    # Calls into oneDNN, which processes without this package lack, must not be in the program.
    compiling = compiling_for(jax.devices()[:1], xla_only=True)
    with compiling, reraise(Exception, failed):  # JAX raises many types for symbolic sizes
        if weights == INSIDE:
            return export.export(jax.jit(partial(run, arrays)), platforms=platforms)(images)
        shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
        return export.export(jax.jit(run), platforms=platforms)(shapes, images)


def flat_arrays(variables: Variables) -> dict[str, np.ndarray]:
    """Returns path -> array of all variables, such as "params/head/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


def _logits(exported: export.Exported, source: Export, weights: str) -> Logits:
    first = [flat_arrays(source.variables)] if weights == ARGUMENT else []

    def logits(images: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(exported.call(*first, images))

    return logits


def read_stablehlo(path: str | Path) -> tuple[export.Exported, Metadata]:
    """Returns the program in a file of `export_stablehlo`, and the metadata in its header.

    Raises:
      UsageError: if the file or its header cannot be read, or they do not belong together.
    """
    path = local_path(path)
    header = read_json(_header(path), "it belongs to the .stablehlo file; export it again")
    with reraise(OSError, lambda error: UsageError(f"{path}: {one_line(error)}")):
        program = path.read_bytes()
    if hashlib.sha256(program).hexdigest() != header.get("sha256"):
        raise UsageError(f"{path} is damaged, or not the file of {_header(path)}; export it again")
    strings = header.get("metadata")
    strings = strings if isinstance(strings, dict) else {}
    metadata = Metadata.from_strings(strings, str(_header(path)))

    def failed(error: Exception) -> UsageError:
        return UsageError(
            f"{path} cannot be read by JAX {jax.__version__} ({one_line(error)}); it was written "
            f"by JAX {header.get('jax')} on {header.get('date')}; export it again"
        )

    with reraise(Exception, failed):  # any kind: it is a file of a library's own format
        return export.deserialize(bytearray(program)), metadata


def _header(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")

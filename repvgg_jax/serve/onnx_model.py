"""Opens an exported ONNX file as a classifier, run by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.serve.model import Model, eval_transform, file_description, names_in_file

_FATAL = 4  # onnxruntime's level of messages


def open_onnx(path: Path) -> Model:
    """Returns the classifier in an ONNX file that `--mode=export` wrote.

    Raises:
      UsageError: if onnxruntime is not installed, the file is damaged, or its metadata are missing
        or do not describe its graph.
    """
    session, strings = _session(path)
    metadata = Metadata.from_strings(strings, str(path))
    inputs, side = session.get_inputs(), metadata.image_size
    expected = "tensor(uint8)" if metadata.preprocess else "tensor(float)"
    if [each.type for each in inputs] != [expected] or not _takes(inputs[0].shape, side):
        found = ", ".join(f"{each.type} {each.shape}" for each in inputs) or "no input"
        raise UsageError(
            f"{path} takes {found}, not the images that its metadata describe: "
            f"one {expected} [batch, 3, {side}, {side}]"
        )
    mean, std = (np.array(value, np.float32) for value in (metadata.mean, metadata.std))
    scale, offset = 1 / (255 * std), -mean / std

    def run(images: np.ndarray) -> np.ndarray:
        if not metadata.preprocess:
            images = images * scale + offset
        nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return softmax(session.run(None, {inputs[0].name: nchw})[0])

    outputs = _outputs(run, side, path)
    names = names_in_file(metadata, outputs, path)
    return Model(file_description(path, metadata), names, eval_transform(metadata), run)


def _takes(shape: list[int | str | None], side: int) -> bool:
    """Returns True if an input of a shape, whose strings are any size, may be square images."""
    return len(shape) == 4 and all(size == side for size in shape[2:] if isinstance(size, int))


def _session(path: Path) -> tuple[Any, dict[str, str]]:
    """Returns the session of a file, and its metadata."""
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{path} needs onnxruntime: pip install -e '.[serve]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL  # others are raised as exceptions too
    # Its threads would otherwise spin while images are decoded.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def damaged(error: Exception) -> UsageError:
        return UsageError(
            f"{path} cannot be read as an ONNX model ({one_line(error)}); export it again"
        )

    with reraise(Exception, damaged):  # onnxruntime's exceptions have no common type
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        return session, session.get_modelmeta().custom_metadata_map


def _outputs(run: Any, side: int, path: Path) -> int:
    """Returns the number of classes, found by running two images, which also shows a bad graph."""

    def failed(error: Exception) -> UsageError:
        return UsageError(f"{path} does not run on two images ({one_line(error)})")

    try:
        with reraise(Exception, failed):
            found = run(np.zeros((2, side, side, 3), np.uint8))
            if found.ndim != 2 or len(found) != 2 or not np.isfinite(found).all():
                shape = list(found.shape)
                raise ValueError(f"its result is {shape}, not finite logits [2, classes]")
    except MemoryError as error:
        raise UsageError(
            f"{path}: two images of {side} x {side} pixels, the size in its metadata, do not fit "
            f"into this machine's memory ({one_line(error)})"
        ) from error
    return found.shape[1]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of logits [..., classes]."""
    with np.errstate(invalid="ignore"):  # of infinite logits: NaN, as in JAX
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)

"""Export as LiteRT (TensorFlow Lite) by `jax2tf` and TensorFlow's converter."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.verification import Export, Logits, check_extension, import_package, prepare
from repvgg_jax.nets import Net, Variables
from repvgg_jax.runtime.devices import compiling_for
from repvgg_jax.runtime.files import write_json


def export_tflite(
    net: Net,
    variables: Variables,
    path: str | Path,
    *,
    metadata: Metadata | None = None,
    images: Any = None,
    allow_train_form: bool = False,
) -> Metadata:
    """Writes a net as a LiteRT (TFLite) model in float32, for images [1, height, width, 3].

    With a batch of one, the converter fuses each ReLU into its convolution; with one of any size,
    it keeps them, and computes shapes at run time. `resize_tensor_input` sets another batch, except
    for nets that reshape, such as VGG. The metadata are in `<path>.json` beside the file.

    Args:
      net: the fused form.
      variables: its variables.
      path: file to write, such as "model.tflite".
      metadata: class names, normalization and size of the images; by default no names, and
        ImageNet's normalization and 224 pixels. If its `preprocess` is True, the model takes
        uint8 images, and normalizes them.
      images: at least four images, uint8 [count, side, side, 3]; the first four verify the file.
        Random if None.
      allow_train_form: True to export a net that is not fused.

    Returns:
      The metadata beside the file, with the relative error of the logits that its interpreter
      computes.

    Raises:
      UsageError: if an argument is invalid, the net is in train form, writing fails, or TensorFlow
        is missing or cannot convert the net.
      RunError: if the model does not compute what the net computes.

    Example:
      >>> net, variables = load("runs/b1", fused=True)  # doctest: +SKIP
      >>> tflite(net, variables, "b1.tflite").export_error < 1e-5  # doctest: +SKIP
      True
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import: no lines on the CPU
    tensorflow = import_package("tensorflow", "tflite")
    check_extension(path, ".tflite")
    source, path = prepare(net, variables, path, metadata, images, allow_train_form)
    model = _converted(tensorflow, source)

    def save(draft: Path, metadata: Metadata) -> None:
        draft.write_bytes(model)
        write_json(draft.with_name(f"{draft.name}.json"), metadata.to_strings())

    return source.write(path, save, partial(_logits, tensorflow))


def _converted(tensorflow: Any, source: Export) -> bytes:
    """Returns the bytes of the model; what TensorFlow writes to stderr is left out."""
    size = source.metadata.image_size
    with _quiet():
        from jax.experimental import jax2tf

        program = jax2tf.convert(partial(source, source.variables), with_gradient=False)
        shape = tensorflow.TensorSpec((1, size, size, 3), source.dtype, name="images")
        function = tensorflow.function(program, autograph=False, input_signature=[shape])
        # TensorFlow does not know the calls into oneDNN.
        with (
            compiling_for(jax.devices()[:1], xla_only=True),
            nn.intercept_methods(_matrix_products),
        ):
            concrete = function.get_concrete_function()
        converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([concrete], function)

        def failed(error: Exception) -> UsageError:
            return UsageError(f"TensorFlow cannot convert the net ({one_line(error)})")

        with reraise(Exception, failed):  # ConverterError has no public name
            return converter.convert()


def _matrix_products(
    call: Callable[..., Any],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Computes dense layers on [batch, 1, 1, channels] as products of matrices [batch, channels].

    The converter of TensorFlow 2.21 makes an invalid `BATCH_MATMUL` of four dimensions.
    """
    if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
        return call(*arguments, **options)
    (x,) = arguments
    rows = call(x.reshape(-1, x.shape[-1]), **options)
    return rows.reshape(*x.shape[:-1], -1)


def _logits(tensorflow: Any, path: Path) -> Logits:
    with _quiet():
        interpreter = tensorflow.lite.Interpreter(str(path))
        interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits(images: np.ndarray) -> np.ndarray:
        rows = []
        for image in images:
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(result["index"]))
        return np.concatenate(rows)

    return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discards warnings on TensorFlow's plans for later versions, and what its C++ code prints."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as null, warnings.catch_warnings():
            os.dup2(null.fileno(), 2)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)

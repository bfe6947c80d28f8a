"""Export as ONNX, for onnxruntime, OpenVINO, TensorRT and others."""

from pathlib import Path
from typing import Any

import numpy as np

from repvgg_jax.errors import RunError, UsageError, one_line, reraise
from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.onnx_graph import INPUT, OUTPUT, make_graph
from repvgg_jax.export.onnx_layout import Graph
from repvgg_jax.export.verification import Export, Logits, check_extension, import_package, prepare
from repvgg_jax.nets import Net, Variables

OPSETS = range(17, 22)
_MAX_BYTES = 2**31 - 1  # of a protocol buffer


def export_onnx(
    net: Net,
    variables: Variables,
    path: str | Path,
    *,
    metadata: Metadata | None = None,
    images: Any = None,
    opset: int = OPSETS[0],
    dynamic_size: bool = False,
    allow_train_form: bool = False,
) -> Metadata:
    """Writes a net as an ONNX file that takes `images` [batch, 3, height, width] to `logits`.

    The graph is made from the operations that JAX traces in `net.apply`, in the layout of ONNX: a
    fused RepVGG becomes `Conv` and `Relu`, then `GlobalAveragePool`, `Flatten` and `Gemm`. It
    computes in float32. The file passes ONNX's checker and shape inference, and onnxruntime's
    logits for batches of one and three images are compared with those of the net.

    Args:
      net: the fused form.
      variables: its variables.
      path: file to write, such as "model.onnx".
      metadata: class names, normalization and size of the images, which become properties of the
        file; by default no names, and ImageNet's normalization and 224 pixels. If its `preprocess`
        is True, the images are RGB pixels, uint8, in the same layout, and the graph normalizes
        them; otherwise they are normalized already, float32.
      images: at least four images, uint8 [count, side, side, 3]; the first four verify the file.
        Random if None.
      opset: version of ONNX's operators, 17 to 21.
      dynamic_size: True to accept any height and width from `metadata.image_size` on; an error
        for nets whose padding or pooling depends on the size.
      allow_train_form: True to export a net that is not fused.

    Returns:
      The metadata in the file, with the relative error of its logits.

    Raises:
      UsageError: if an argument is invalid, the net is in train form, an operation of the net has
        no counterpart, or writing fails.
      RunError: if the file does not compute what the net computes.

    Example:
      >>> net, variables = load("runs/b1", fused=True)  # doctest: +SKIP
      >>> onnx(net, variables, "b1.onnx").export_error  # doctest: +SKIP
      4.1e-07
    """
    if opset not in OPSETS:
        raise UsageError(f"opset={opset!r}: choose from {OPSETS[0]} to {OPSETS[-1]}")
    import_package("onnx"), import_package("onnxruntime")
    check_extension(path, ".onnx")
    source, path = prepare(net, variables, path, metadata, images, allow_train_form)
    model = _model(source, make_graph(source, dynamic_size), opset, dynamic_size)
    if dynamic_size:
        source.check_larger(_logits(model.SerializeToString()))

    def save(file: Path, metadata: Metadata) -> None:
        helper = import_package("onnx.helper")
        helper.set_model_props(model, metadata.to_strings())
        file.write_bytes(model.SerializeToString())

    return source.write(path, save, lambda file: _logits(str(file)))


def _model(source: Export, graph: Graph, opset: int, dynamic_size: bool) -> Any:
    """Returns the checked model, without metadata."""
    onnx, helper = import_package("onnx"), import_package("onnx.helper")
    if sum(value.nbytes for value in graph.initializers.values()) > _MAX_BYTES:
        raise UsageError("the weights are larger than 2 GB, the limit of a single ONNX file")
    side = source.metadata.image_size
    sides = ["height", "width"] if dynamic_size else [side, side]
    kind = onnx.TensorProto.UINT8 if source.metadata.preprocess else onnx.TensorProto.FLOAT
    given = helper.make_tensor_value_info(INPUT, kind, ["batch", 3, *sides])
    given.type.denotation = "IMAGE"  # which the specification's metadata for images refer to
    shape = ["batch", source.net.num_classes]
    result = helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape)
    names = Graph()  # of nodes, which differ from those of tensors after operators were merged
    nodes = [
        helper.make_node(
            each.op,
            each.inputs,
            each.outputs,
            name=names.unique("/".join([*each.output.split("/")[:-1], each.op])),
            **each.attributes,
        )
        for each in graph.nodes
    ]
    tensors = [
        onnx.numpy_helper.from_array(value, name) for name, value in graph.initializers.items()
    ]
    name = type(source.net).__name__
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(nodes, name, [given], [result], tensors),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="repvgg_jax",
        producer_version=source.metadata.version,
        doc_string=source.metadata.model,
    )

    def failed(error: Exception) -> RunError:
        return RunError(f"ONNX's checker rejects the graph ({one_line(error)})")

    with reraise(Exception, failed):  # the checker's and the shape inference's own types
        onnx.checker.check_model(model, full_check=True)
    return model


def _logits(model: str | bytes) -> Logits:
    """Returns the function that onnxruntime computes with a file, or its bytes."""
    onnxruntime = import_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], {INPUT: np.ascontiguousarray(images.transpose(0, 3, 1, 2))})[0]

    return run

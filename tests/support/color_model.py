"""A tiny ONNX file that tells whether an image is red, green or blue."""

import numpy as np

from repvgg_jax.export.metadata import Metadata

NAMES = ("red", "green", "blue")


def write_color_model(path, side=8, strings=None, **values):
    """Writes the model with metadata of the given values, or with other strings in their place."""
    from onnx import TensorProto, helper, numpy_helper, save

    metadata = Metadata(**({"names": NAMES, "image_size": side, "model": "colors"} | values))
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "kernel"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ("batch", 3, side, side))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 3))
    kernel = numpy_helper.from_array(np.eye(3, dtype=np.float32), "kernel")
    graph = helper.make_graph(nodes, "colors", [images], [logits], [kernel])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    helper.set_model_props(model, metadata.to_strings() if strings is None else strings)
    save(model, path)
    return path

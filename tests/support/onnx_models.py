"""Functions of images as nets, and what onnxruntime computes with their ONNX graphs."""

import dataclasses
from collections import Counter

import numpy as np

from repvgg_jax.export.metadata import Metadata
from repvgg_jax.export.onnx_file import _logits, _model
from repvgg_jax.export.onnx_graph import make_graph
from repvgg_jax.export.verification import Export
from tests.support.variables import random_images


@dataclasses.dataclass(frozen=True)
class Function:
    """A function (variables, images) -> [batch, num_classes] in the place of a net."""

    call: object
    num_classes: int

    def apply(self, variables, images, train):
        return self.call(variables, images)


def operators(model):
    """Returns operator -> number of nodes."""
    return Counter(node.op_type for node in model.graph.node)


def converted(call, variables, size=8, batch=3, dynamic_size=False, sides=None):
    """Returns the ONNX model of a function, its result by onnxruntime, and that by JAX."""
    images = random_images(batch, *(sides or (size, size)), 3)
    expected = np.asarray(call(variables, images))
    source = Export(Function(call, expected.shape[1]), variables, Metadata(image_size=size), images)
    graph = make_graph(source, dynamic_size)
    model = _model(source, graph, 17, dynamic_size)
    return model, _logits(model.SerializeToString())(np.asarray(images)), expected


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def optimized(model, path):
    """Returns the model as onnxruntime optimizes it, before it chooses a layout for the CPU."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return onnx.load(path)

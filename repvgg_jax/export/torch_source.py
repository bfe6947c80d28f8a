"""PyTorch code of a graph of ONNX operators: a module that imports torch only."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError
from repvgg_jax.export.onnx_layout import Graph, Node

# ONNX operator -> function of the writer and a node that returns an expression of the result.
Operators = Mapping[str, Callable[..., str]]
# Written around the expression before them, such as `F.relu(self.conv(x))`.
_WRAPPING = ("Relu", "Sigmoid", "Clip")


class Writer:
    """The code of a module's `__init__` and `forward`, and its state dict, node by node.

    Layers with weights become submodules, other arrays buffers, and numbers literals. A variable of
    `forward` is reused once its value is no longer needed, so that activations are freed.

    Args:
      graph: graph to write.
      operators: the operators that can be written.
      given: name of the graph's input.
      result: name of its output.

    Attributes:
      layers: lines of `__init__`.
      steps: variables and expressions of `forward`.
      state: the state dict.
    """

    def __init__(self, graph: Graph, operators: Operators, given: str, result: str) -> None:
        self.layers: list[str] = []
        self.steps: list[tuple[str, str]] = []
        self.state: dict[str, np.ndarray] = {}
        self._operators = operators
        self._arrays = graph.initializers
        self._uses = Counter(name for node in graph.nodes for name in node.inputs)
        self._uses[result] += 1
        self._variables = {given: "x"}
        for node in graph.nodes:
            self._add(node)
        self.result = self._variables[result]

    def _add(self, node: Node) -> None:
        if node.op not in self._operators:
            raise UsageError(f"the ONNX operator {node.op} has no counterpart in PyTorch here")
        expression = self._operators[node.op](self, node)
        given = [name for name in dict.fromkeys(node.inputs) if name in self._variables]
        freed = []
        for name in given:
            self._uses[name] -= node.inputs.count(name)
            if not self._uses[name]:
                freed.append(self._variables.pop(name))
        for name in node.outputs:
            self._variables[name] = self._free_variable()
        target = ", ".join(self._variables[name] for name in node.outputs)
        if node.op in _WRAPPING and self.steps and freed == [target] == [self.steps[-1][0]]:
            expression = self._operators[node.op](self, node, self.steps.pop()[1])
        self.steps.append((target, expression))

    def _free_variable(self) -> str:
        taken = {*self._variables.values()}
        names = ["x", "y", "z", *(f"x{index}" for index in range(1, len(taken) + 2))]
        return next(name for name in names if name not in taken)

    def array(self, name: str) -> np.ndarray | None:
        """Returns the array of an initializer; None if the name is a node's output."""
        return self._arrays.get(name)

    def numbers(self, name: str) -> list[Any]:
        """Returns the elements of an initializer that other tools would take for an attribute."""
        return self._arrays[name].reshape(-1).tolist()

    def operand(self, name: str) -> str:
        """Returns an expression for an input: a variable, a literal or a buffer."""
        array = self.array(name)
        if array is None:
            return self._variables[name]
        if array.size == 1 and array.ndim <= 1:
            return literal(array.item())
        buffer = self.attribute(name)
        if buffer not in self.state:
            self.state[buffer] = np.array(array)
            dtype = "" if array.dtype == np.float32 else f", dtype=torch.{array.dtype.name}"
            self.layers.append(
                f'self.register_buffer("{buffer}", torch.zeros({array.shape}{dtype}))'
            )
        return f"self.{buffer}"

    def layer(self, node: Node, code: str, **weights: np.ndarray | None) -> str:
        """Adds a submodule with weights; returns its name."""
        name = self.attribute(_layer_name(node))
        while f"{name}.weight" in self.state:
            name += "_"
        self.layers.append(f"self.{name} = {code}")
        for key, array in weights.items():
            if array is not None:
                self.state[f"{name}.{key}"] = np.array(array)  # writable, for PyTorch
        return f"self.{name}"

    def attribute(self, name: str) -> str:
        """Returns a name of the graph as an attribute's."""
        text = re.sub(r"\W+", "_", name).strip("_")
        return f"_{text}" if text[:1].isdigit() else text


def _layer_name(node: Node) -> str:
    """Returns the name of a layer, from that of its kernel, such as stage0_block0/conv/kernel."""
    return re.sub(r"(/conv)?/(kernel|weight)$", "", node.inputs[1])


def literal(value: Any) -> str:
    """Returns a number as Python code."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)

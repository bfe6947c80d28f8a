"""PyTorch code of a graph of ONNX operators: a module that imports torch only."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError
from repvgg_jax.export.onnx_layout import Graph, Node


class Writer:
    """The code of a module's `__init__` and `forward`, and its state dict, node by node.

    Layers with weights become submodules, other arrays buffers, and numbers literals. A variable of
    `forward` is reused once its value is no longer needed, so that activations are freed.

    Attributes:
      layers: lines of `__init__`.
      steps: variables and expressions of `forward`.
      state: the state dict.
    """

    def __init__(self, graph: Graph, given: str, result: str) -> None:
        self.layers: list[str] = []
        self.steps: list[tuple[str, str]] = []
        self.state: dict[str, np.ndarray] = {}
        self._arrays = graph.initializers
        self._uses = Counter(name for node in graph.nodes for name in node.inputs)
        self._uses[result] += 1
        self._variables = {given: "x"}
        for node in graph.nodes:
            self._add(node)
        self.result = self._variables[result]

    def _add(self, node: Node) -> None:
        if node.op not in OPERATORS:
            raise UsageError(f"the ONNX operator {node.op} has no counterpart in PyTorch here")
        expression = OPERATORS[node.op](self, node)
        given = [name for name in dict.fromkeys(node.inputs) if name in self._variables]
        freed = []
        for name in given:
            self._uses[name] -= node.inputs.count(name)
            if not self._uses[name]:
                freed.append(self._variables.pop(name))
        for name in node.outputs:
            self._variables[name] = self._free_variable()
        target = ", ".join(self._variables[name] for name in node.outputs)
        if node.op in _UNARY and self.steps and freed == [target] == [self.steps[-1][0]]:
            expression = OPERATORS[node.op](self, node, self.steps.pop()[1])
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
            return _literal(array.item())
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


def _literal(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _margins(pads: list[int]) -> tuple[int, ...]:
    """Returns ONNX's (top, left, bottom, right) in the order of `F.pad`."""
    top, left, bottom, right = pads
    return left, right, top, bottom


def _pair(values: Iterable[int]) -> str:
    """Returns the sizes of both axes as PyTorch takes them: one number if they are equal."""
    values = tuple(values)
    return str(values[0] if len(set(values)) == 1 else values)


def _convolution(writer: Writer, node: Node) -> str:
    kernel = writer.array(node.inputs[1])
    bias = writer.array(node.inputs[2]) if len(node.inputs) > 2 else None
    if kernel is None:
        raise UsageError("a convolution whose kernel is computed has no counterpart in PyTorch")
    found, x = node.attributes, writer.operand(node.inputs[0])
    groups, pads = found.get("group", 1), list(found.get("pads", (0, 0, 0, 0)))
    padding = pads[:2]
    if pads[:2] != pads[2:]:
        x, padding = f"F.pad({x}, {_margins(pads)})", [0, 0]
    fields = [kernel.shape[1] * groups, kernel.shape[0], _pair(kernel.shape[2:])]
    options = {"stride": _pair(found.get("strides", (1, 1))), "padding": _pair(padding)}
    options["dilation"] = _pair(found.get("dilations", (1, 1)))
    options |= {"groups": str(groups), "bias": str(bias is not None)}
    defaults = {"stride": "1", "padding": "0", "dilation": "1", "groups": "1", "bias": "True"}
    text = [f"{key}={value}" for key, value in options.items() if value != defaults[key]]
    code = f"nn.Conv2d({', '.join([*map(str, fields), *text])})"
    return f"{writer.layer(node, code, weight=kernel, bias=bias)}({x})"


def _dense(writer: Writer, node: Node) -> str:
    kernel = writer.array(node.inputs[1])
    bias = writer.array(node.inputs[2]) if len(node.inputs) > 2 else None
    x = writer.operand(node.inputs[0])
    if kernel is None or kernel.ndim != 2:
        return f"{x} @ {writer.operand(node.inputs[1])}"
    weight = kernel if node.attributes.get("transB") else kernel.T
    features, inputs = weight.shape
    code = f"nn.Linear({inputs}, {features}{'' if bias is not None else ', bias=False'})"
    return f"{writer.layer(node, code, weight=weight, bias=bias)}({x})"


def _max_pool(writer: Writer, node: Node) -> str:
    found, x = node.attributes, writer.operand(node.inputs[0])
    pads = list(found.get("pads", (0, 0, 0, 0)))
    size, stride = found["kernel_shape"], found.get("strides", (1, 1))
    if pads[:2] == pads[2:] and all(2 * p <= k for p, k in zip(pads[:2], size, strict=True)):
        return f"F.max_pool2d({x}, {_pair(size)}, {_pair(stride)}, {_pair(pads[:2])})"
    x = f'F.pad({x}, {_margins(pads)}, value=float("-inf"))'
    return f"F.max_pool2d({x}, {_pair(size)}, {_pair(stride)})"


def _mean_pool(writer: Writer, node: Node) -> str:
    found, x = node.attributes, writer.operand(node.inputs[0])
    pads = list(found.get("pads", (0, 0, 0, 0)))
    window = f"{_pair(found['kernel_shape'])}, {_pair(found.get('strides', (1, 1)))}"
    if not any(pads):
        return f"F.avg_pool2d({x}, {window})"
    mean = f"F.avg_pool2d(F.pad({{}}, {_margins(pads)}), {window})"
    if found.get("count_include_pad"):
        return mean.format(x)
    return f"{mean.format(x)} / {mean.format(f'torch.ones_like({x}[:1, :1])')}"


def _reduced(function: str) -> Callable[[Writer, Node], str]:
    def convert(writer: Writer, node: Node) -> str:
        axes = node.attributes.get("axes") or writer.numbers(node.inputs[1])
        keep = ", keepdim=True" if node.attributes.get("keepdims", 1) else ""
        return f"{writer.operand(node.inputs[0])}.{function}({tuple(axes)}{keep})"

    return convert


def _infix(symbol: str) -> Callable[[Writer, Node], str]:
    def convert(writer: Writer, node: Node) -> str:
        x, y = map(writer.operand, node.inputs)
        return f"{x} {symbol} {y}"

    return convert


def _extreme(function: str, clamp: str) -> Callable[[Writer, Node], str]:
    def convert(writer: Writer, node: Node) -> str:
        x, y = map(writer.operand, node.inputs)
        array = writer.array(node.inputs[1])
        if array is not None and array.size == 1:
            return f"{x}.clamp({clamp}={y})"
        return f"torch.{function}({x}, {y})"

    return convert


def _unary(template: str) -> Callable[..., str]:
    def convert(writer: Writer, node: Node, x: str = "") -> str:
        return template.format(x or writer.operand(node.inputs[0]))

    return convert


def _clip(writer: Writer, node: Node, x: str = "") -> str:
    low, high = (writer.operand(name) if name else "None" for name in node.inputs[1:3])
    return f"({x or writer.operand(node.inputs[0])}).clamp({low}, {high})"


def _concatenation(writer: Writer, node: Node) -> str:
    parts = ", ".join(map(writer.operand, node.inputs))
    return f"torch.cat(({parts}), {node.attributes['axis']})"


def _split(writer: Writer, node: Node) -> str:
    sizes = writer.numbers(node.inputs[1])
    return f"{writer.operand(node.inputs[0])}.split({sizes}, {node.attributes.get('axis', 0)})"


def _slice(writer: Writer, node: Node) -> str:
    starts, ends, axes, *steps = (writer.numbers(name) for name in node.inputs[1:])
    steps = steps[0] if steps else [1] * len(axes)
    index = [":"] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = "" if end >= 2**31 - 1 else end
        index[axis] = f"{start or ''}:{stop}" + (f":{step}" if step != 1 else "")
    return f"{writer.operand(node.inputs[0])}[{', '.join(index)}]"


def _pad(writer: Writer, node: Node) -> str:
    pads = writer.numbers(node.inputs[1])
    value = writer.numbers(node.inputs[2])[0] if len(node.inputs) > 2 else 0.0
    rank = len(pads) // 2
    pairs = [pad for axis in reversed(range(rank)) for pad in (pads[axis], pads[axis + rank])]
    while pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    if min(pairs, default=0) < 0 or value == 0:
        return f"F.pad({writer.operand(node.inputs[0])}, {tuple(pairs)})"
    return f"F.pad({writer.operand(node.inputs[0])}, {tuple(pairs)}, value={_literal(value)})"


def _reshape(writer: Writer, node: Node) -> str:
    x = writer.operand(node.inputs[0])
    shape = [
        f"{x}.shape[{axis}]" if size == 0 else str(size)
        for axis, size in enumerate(writer.numbers(node.inputs[1]))
    ]
    return f"{x}.reshape({', '.join(shape)})"


def _transpose(writer: Writer, node: Node) -> str:
    return f"{writer.operand(node.inputs[0])}.permute({tuple(node.attributes['perm'])})"


def _gather(writer: Writer, node: Node) -> str:
    index = ":, " * node.attributes.get("axis", 0)
    return f"{writer.operand(node.inputs[0])}[{index}{writer.operand(node.inputs[1])}]"


def _where(writer: Writer, node: Node) -> str:
    return f"torch.where({', '.join(map(writer.operand, node.inputs))})"


def _expand(writer: Writer, node: Node) -> str:
    ones = writer.numbers(node.inputs[1])
    return f"{writer.operand(node.inputs[0])} * torch.ones({ones})"


def _batch_norm(writer: Writer, node: Node) -> str:
    x, *names = node.inputs
    weights = dict(zip(_BATCH_NORM, map(writer.array, names), strict=True))
    code = f"nn.BatchNorm2d({len(weights['weight'])}, eps={node.attributes['epsilon']})"
    return f"{writer.layer(node, code, **weights)}({writer.operand(x)})"


def _local_response_norm(writer: Writer, node: Node) -> str:
    numbers = [node.attributes[key] for key in ("size", "alpha", "beta", "bias")]
    return f"F.local_response_norm({writer.operand(node.inputs[0])}, *{tuple(numbers)})"


_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_FUNCTIONS = {
    **{name.title(): name for name in ("exp", "log", "neg", "abs", "sign", "sqrt", "erf")},
    **{name.title(): name for name in ("floor", "ceil", "sin", "cos", "tanh", "sigmoid")},
    "Reciprocal": "reciprocal",
    "Not": "logical_not",
}
_SYMBOLS = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Pow": "**", "Equal": "=="}
_SYMBOLS |= {"Greater": ">", "GreaterOrEqual": ">=", "Less": "<", "LessOrEqual": "<="}
_SYMBOLS |= {"And": "&", "Or": "|"}
OPERATORS: dict[str, Callable[..., str]] = {
    **{op: _infix(symbol) for op, symbol in _SYMBOLS.items()},
    **{op: _unary(f"torch.{function}({{}})") for op, function in _FUNCTIONS.items()},
    "AveragePool": _mean_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _unary("{}.float()"),
    "Clip": _clip,
    "Concat": _concatenation,
    "Conv": _convolution,
    "Expand": _expand,
    "Flatten": _unary("{}.flatten(1)"),
    "Gather": _gather,
    "Gemm": _dense,
    "GlobalAveragePool": _unary("{}.mean((2, 3), keepdim=True)"),
    "LRN": _local_response_norm,
    "MatMul": _dense,
    "Max": _extreme("maximum", "min"),
    "MaxPool": _max_pool,
    "Min": _extreme("minimum", "max"),
    "Pad": _pad,
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "Relu": _unary("F.relu({})"),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "Where": _where,
}
_UNARY = ("Relu", "Sigmoid", "Clip")  # written around the expression before them

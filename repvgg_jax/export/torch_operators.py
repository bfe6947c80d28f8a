"""PyTorch expressions of ONNX operators, as the graphs of `onnx_graph` use them.

Each function takes the writer of the module and a node, and returns an expression of its result.
"""

from collections.abc import Callable, Iterable

from repvgg_jax.errors import UsageError
from repvgg_jax.export.onnx_layout import Node
from repvgg_jax.export.torch_source import Operators, Writer, literal


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
    inputs, features = kernel.shape
    code = f"nn.Linear({inputs}, {features}{'' if bias is not None else ', bias=False'})"
    return f"{writer.layer(node, code, weight=kernel.T, bias=bias)}({x})"


def _max_pool(writer: Writer, node: Node) -> str:
    found, x = node.attributes, writer.operand(node.inputs[0])
    pads, size, stride = (found[key] for key in ("pads", "kernel_shape", "strides"))
    if pads[:2] == pads[2:] and all(2 * p <= k for p, k in zip(pads[:2], size, strict=True)):
        return f"F.max_pool2d({x}, {_pair(size)}, {_pair(stride)}, {_pair(pads[:2])})"
    x = f'F.pad({x}, {_margins(pads)}, value=float("-inf"))'
    return f"F.max_pool2d({x}, {_pair(size)}, {_pair(stride)})"


def _mean_pool(writer: Writer, node: Node) -> str:
    found, x = node.attributes, writer.operand(node.inputs[0])
    pads, window = found["pads"], f"{_pair(found['kernel_shape'])}, {_pair(found['strides'])}"
    if not any(pads):
        return f"F.avg_pool2d({x}, {window})"
    mean = f"F.avg_pool2d(F.pad({{}}, {_margins(pads)}), {window})"
    if found["count_include_pad"]:
        return mean.format(x)
    return f"{mean.format(x)} / {mean.format(f'torch.ones_like({x}[:1, :1])')}"


def _reduce_sum(writer: Writer, node: Node) -> str:
    axes = tuple(writer.numbers(node.inputs[1]))
    return f"{writer.operand(node.inputs[0])}.sum({axes}, keepdim=True)"


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
    return f"{writer.operand(node.inputs[0])}.split({sizes}, {node.attributes['axis']})"


def _slice(writer: Writer, node: Node) -> str:
    starts, ends, axes, steps = (writer.numbers(name) for name in node.inputs[1:])
    index = [":"] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop = "" if end >= 2**31 - 1 else end
        index[axis] = f"{start or ''}:{stop}" + (f":{step}" if step != 1 else "")
    return f"{writer.operand(node.inputs[0])}[{', '.join(index)}]"


def _pad(writer: Writer, node: Node) -> str:
    pads = writer.numbers(node.inputs[1])
    (value,) = writer.numbers(node.inputs[2])
    rank = len(pads) // 2
    pairs = [pad for axis in reversed(range(rank)) for pad in (pads[axis], pads[axis + rank])]
    while pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    if value == 0:
        return f"F.pad({writer.operand(node.inputs[0])}, {tuple(pairs)})"
    return f"F.pad({writer.operand(node.inputs[0])}, {tuple(pairs)}, value={literal(value)})"


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
    index = ":, " * node.attributes["axis"]
    return f"{writer.operand(node.inputs[0])}[{index}{writer.operand(node.inputs[1])}]"


def _where(writer: Writer, node: Node) -> str:
    return f"torch.where({', '.join(map(writer.operand, node.inputs))})"


def _expand(writer: Writer, node: Node) -> str:
    sizes = [-1 if size == 1 else size for size in writer.numbers(node.inputs[1])]
    return f"{writer.operand(node.inputs[0])}.expand({sizes})"


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
OPERATORS: Operators = {
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
    "ReduceSum": _reduce_sum,
    "Relu": _unary("F.relu({})"),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "Where": _where,
}

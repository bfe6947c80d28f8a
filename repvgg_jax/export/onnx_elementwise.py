"""The ONNX operators of JAX's elementwise primitives.

Each function takes the graph, the parameters of a primitive and its operands, and returns its
result, or a list of several.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from repvgg_jax.export.onnx_layout import (
    Constant,
    Graph,
    Tensor,
    flat,
    new_axis,
    permuted,
    spread,
    standard_order,
)

Operand = Tensor | Constant
Parameters = dict[str, Any]


def elementwise(graph: Graph, op: str, *operands: Operand) -> Tensor:
    """Adds an operator on operands that broadcast against each other."""
    tensors = [graph.multiplied(each) for each in operands if isinstance(each, Tensor)]
    constants = [each.value for each in operands if isinstance(each, Constant)]
    first = tensors[0]
    same = all(_pattern(tensor) == _pattern(first) for tensor in tensors)
    if not same or not all(_broadcasts_into(value.shape, first.shape) for value in constants):
        rank = max(len(each.shape) for each in (*tensors, *map(np.asarray, constants)))
        tensors = [graph.standard(_of_rank(tensor, rank)) for tensor in tensors]
        first = _broadcast(graph, tensors, constants, rank)
    given = iter(tensors)
    inputs = [
        next(given).name
        if isinstance(each, Tensor)
        else Constant(_trimmed(spread(each.value, first.axes, first.dims)), each.label)
        for each in operands
    ]
    return first.replace(name=graph.add(op, *inputs))


def _pattern(tensor: Tensor) -> Any:
    """Returns the places of the factors in dimensions and axes; equal ones need no reordering."""
    source = flat(tensor.axes)
    places = [[source.index(factor) for factor in factors] for factors in tensor.dims]
    return places, [[factor.size for factor in factors] for factors in tensor.axes]


def _broadcasts_into(shape: tuple[int, ...], other: tuple[Any, ...]) -> bool:
    """Returns True if broadcasting against `other` leaves that as it is."""
    if len(shape) > len(other):
        return False
    return all(size in (1, there) for size, there in zip(shape[::-1], other[::-1], strict=False))


def _of_rank(tensor: Tensor, rank: int) -> Tensor:
    return tensor.replace(axes=((),) * (rank - len(tensor.axes)) + tensor.axes)


def _broadcast(
    graph: Graph, tensors: Sequence[Tensor], constants: Sequence[np.ndarray], rank: int
) -> Tensor:
    """Returns the layout of the result of broadcasting, in the order of ONNX."""
    axes = []
    for index in range(rank):
        largest = next((tensor.axes[index] for tensor in tensors if tensor.axes[index]), ())
        for value in constants:
            place = index - rank + value.ndim
            if not largest and place >= 0:
                largest = new_axis(value.shape[place])
        axes.append(largest)
    return Tensor("", permuted(tuple(axes), standard_order(rank)), tuple(axes))


def _trimmed(value: np.ndarray) -> np.ndarray:
    """Returns the array without leading dimensions of size 1."""
    while value.ndim and value.shape[0] == 1:
        value = value[0]
    return value


def _add(graph: Graph, _: Parameters, x: Operand, y: Operand) -> Tensor:
    return elementwise(graph, "Add", *_tensor_first(x, y))


def _mul(graph: Graph, _: Parameters, x: Operand, y: Operand) -> Tensor:
    x, y = _tensor_first(x, y)
    if isinstance(x, Tensor) and x.is_pending and isinstance(y, Constant) and y.is_scalar:
        return _scaled(x, y.value.item())
    return elementwise(graph, "Mul", x, y)


def _div(graph: Graph, _: Parameters, x: Operand, y: Operand) -> Tensor:
    if isinstance(x, Tensor) and isinstance(y, Constant) and y.is_scalar and y.value.item() == 1:
        return x  # the mean of a single pixel
    if not (isinstance(x, Tensor) and x.is_pending and isinstance(y, Constant)):
        return elementwise(graph, "Div", x, y)
    if y.is_scalar and x.times == y.value.item():  # may be symbolic
        return x.replace(times=1)
    if y.is_scalar:
        return _scaled(x, 1 / y.value.item())
    if x.counts is not None and np.array_equal(x.counts, np.squeeze(y.value)):
        node = graph.producer(x.name)
        mean = graph.add(node.op, *node.inputs, **node.attributes | {"count_include_pad": 0})
        pixels = math.prod(node.attributes["kernel_shape"])
        return _scaled(x.replace(name=mean, counts=None), 1 / pixels)
    return elementwise(graph, "Div", x, y)


def _tensor_first(x: Operand, y: Operand) -> tuple[Operand, Operand]:
    return (y, x) if isinstance(x, Constant) else (x, y)


def _scaled(x: Tensor, factor: float) -> Tensor:
    times = x.times * factor
    return x.replace(times=1 if math.isclose(times, 1, rel_tol=1e-6) else times)


def _max(graph: Graph, _: Parameters, x: Operand, y: Operand) -> Tensor:
    x, y = _tensor_first(x, y)
    if isinstance(y, Constant) and not y.value.any():
        return elementwise(graph, "Relu", x)
    return elementwise(graph, "Max", x, y)


def _min(graph: Graph, _: Parameters, x: Operand, y: Operand) -> Tensor:
    return elementwise(graph, "Min", *_tensor_first(x, y))


def _plain(op: str) -> Callable[..., Tensor]:
    return lambda graph, _, *operands: elementwise(graph, op, *operands)


def _square(graph: Graph, _: Parameters, x: Tensor) -> Tensor:
    return elementwise(graph, "Mul", x, x)


def _integer_pow(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    if parameters["y"] == 2:
        return _square(graph, parameters, x)
    return elementwise(graph, "Pow", x, Constant(np.float32(parameters["y"]), "exponent"))


def _rsqrt(graph: Graph, _: Parameters, x: Tensor) -> Tensor:
    return elementwise(graph, "Reciprocal", elementwise(graph, "Sqrt", x))


def _log1p(graph: Graph, _: Parameters, x: Tensor) -> Tensor:
    return elementwise(graph, "Log", elementwise(graph, "Add", x, Constant(np.float32(1))))


def _erfc(graph: Graph, _: Parameters, x: Tensor) -> Tensor:
    return elementwise(graph, "Sub", Constant(np.float32(1)), elementwise(graph, "Erf", x))


def _not_equal(graph: Graph, _: Parameters, x: Operand, y: Operand) -> Tensor:
    return elementwise(graph, "Not", elementwise(graph, "Equal", x, y))


def _select(graph: Graph, _: Parameters, which: Operand, no: Operand, yes: Operand) -> Tensor:
    return elementwise(graph, "Where", which, yes, no)


def _clamp(graph: Graph, _: Parameters, low: Operand, x: Tensor, high: Operand) -> Tensor:
    return elementwise(graph, "Clip", x, low, high)


def _copy(graph: Graph, _: Parameters, *operands: Tensor) -> Any:
    return list(operands)


_UNARY = {
    "logistic": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "erf": "Erf",
    "floor": "Floor",
    "ceil": "Ceil",
    "sin": "Sin",
    "cos": "Cos",
}
_LOGICAL = {"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"}
_LOGICAL |= {"eq": "Equal", "and": "And", "or": "Or", "not": "Not"}
# Operands of these may be broadcast.
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": _add,
    "add_any": _add,
    "sub": _plain("Sub"),
    "mul": _mul,
    "div": _div,
    "max": _max,
    "min": _min,
    "pow": _plain("Pow"),
    "integer_pow": _integer_pow,
    "square": _square,
    "rsqrt": _rsqrt,
    "log1p": _log1p,
    "erfc": _erfc,
    "ne": _not_equal,
    "select_n": _select,
    "clamp": _clamp,
    "copy": _copy,
    "stop_gradient": _copy,
    "optimization_barrier": _copy,
    **{name: _plain(op) for name, op in (_UNARY | _LOGICAL).items()},
}

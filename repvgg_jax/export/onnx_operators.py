"""The ONNX operators of JAX's primitives, other than the elementwise ones.

Each function takes the graph, the parameters of a primitive and its operands, and returns its
result, or a list of several.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from repvgg_jax.errors import UsageError
from repvgg_jax.export.onnx_elementwise import ELEMENTWISE, Operand, Parameters
from repvgg_jax.export.onnx_layout import (
    Axes,
    Constant,
    Graph,
    Tensor,
    flat,
    new_axis,
    permuted,
    reshaped,
    standard_order,
)


def _cast(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    # All numbers of the graph are float32, except for pixels and conditions.
    kind = np.dtype(parameters["new_dtype"])
    if kind == np.bool_ or np.issubdtype(kind, np.integer):
        raise UsageError(f"a conversion to {kind} is not supported")
    return x.replace(name=graph.add("Cast", x.name, to=1))  # 1 is FLOAT


def _reshape(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    return reshaped(x, parameters["new_sizes"])


def _squeeze(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    removed = {axis % len(x.axes) for axis in parameters["dimensions"]}
    return x.replace(axes=tuple(each for k, each in enumerate(x.axes) if k not in removed))


def _transpose(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    return x.replace(axes=permuted(x.axes, parameters["permutation"]))


def _broadcast_in_dim(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    axes: list[Any] = [()] * len(parameters["shape"])
    for axis, factors in zip(parameters["broadcast_dimensions"], x.axes, strict=True):
        axes[axis] = factors
    return x.replace(axes=tuple(axes))  # operators broadcast, and `full` does it for the others


def full(graph: Graph, x: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """Returns a tensor of the full shape, of one that may be broadcast."""
    if all(size == other for size, other in zip(x.shape, shape, strict=True)):
        return x
    order = standard_order(len(shape))
    x = graph.standard(x)
    axes = tuple(factors or new_axis(size) for factors, size in zip(x.axes, shape, strict=True))
    added = [1 if x.axes[axis] else shape[axis] for axis in order]
    name = graph.add("Expand", x.name, graph.integers(*added))
    return x.replace(name=name, dims=permuted(axes, order), axes=axes)


def _concatenate(graph: Graph, parameters: Parameters, *operands: Operand) -> Tensor:
    axis, rank = parameters["dimension"], len(parameters["shape"])
    order = standard_order(rank)
    tensors = [graph.standard(each) if isinstance(each, Tensor) else each for each in operands]
    inputs = [
        each.name if isinstance(each, Tensor) else Constant(each.value.transpose(order), each.label)
        for each in tensors
    ]
    first = next(each for each in tensors if isinstance(each, Tensor))
    others = flat((*first.axes[:axis], *first.axes[axis + 1 :]))
    has_constant = any(isinstance(each, Constant) for each in operands)
    if has_constant and not all(factor.is_fixed for factor in others):
        raise UsageError("a concatenation of images with a constant is not supported; pad instead")
    name = graph.add("Concat", *inputs, axis=order.index(axis))
    return _with_sides(first, name, {axis: parameters["shape"][axis]})


def _with_sides(x: Tensor, name: str, changed: dict[int, Any]) -> Tensor:
    """Returns a tensor with the layout of x, which is standard, but axes of other sizes."""
    axes = tuple(
        new_axis(changed[index]) if index in changed else factors
        for index, factors in enumerate(x.axes)
    )
    return Tensor(name, permuted(axes, standard_order(len(axes))), axes)


def _split(graph: Graph, parameters: Parameters, x: Tensor) -> list[Tensor]:
    x, axis = graph.standard(x), parameters["axis"]
    parts = [int(size) for size in parameters["sizes"]]
    place = standard_order(len(x.axes)).index(axis)
    names = graph.add("Split", x.name, graph.integers(*parts), outputs=len(parts), axis=place)
    return [_with_sides(x, name, {axis: size}) for name, size in zip(names, parts, strict=True)]


def _slice(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    x = graph.standard(x)
    starts, limits = parameters["start_indices"], parameters["limit_indices"]
    strides = parameters["strides"] or (1,) * len(starts)
    order, shape = standard_order(len(x.axes)), x.shape
    changed, rows = {}, []
    for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides, strict=True)):
        if start == 0 and limit == shape[axis] and stride == 1:
            continue
        end = limit if isinstance(limit, int | np.integer) else limit - shape[axis]
        if not isinstance(end, int | np.integer) or not isinstance(start, int | np.integer):
            raise UsageError("a slice whose ends depend on the size of the image is not supported")
        changed[axis] = (limit - start + stride - 1) // stride
        rows.append((start, np.iinfo(np.int64).max if end == 0 else end, order.index(axis), stride))
    if not rows:
        return x
    columns = (graph.integers(*map(int, column)) for column in zip(*rows, strict=True))
    return _with_sides(x, graph.add("Slice", x.name, *columns), changed)


def _pad(graph: Graph, parameters: Parameters, x: Tensor, value: Operand) -> Tensor:
    config = parameters["padding_config"]
    low, high, inner = zip(*config, strict=True)
    if any(inner) or not isinstance(value, Constant):
        raise UsageError("padding inside of an array, or by what is not a number, is not supported")
    x = graph.standard(x)
    order = standard_order(len(x.axes))
    margins = graph.integers(*_integers(*permuted(low, order), *permuted(high, order)))
    name = graph.add("Pad", x.name, margins, Constant(value.value, "padding"))
    changed = {
        axis: x.shape[axis] + low[axis] + high[axis]
        for axis in range(len(x.axes))
        if low[axis] or high[axis]
    }
    return _with_sides(x, name, changed)


def _integers(*values: Any) -> list[int]:
    """Returns the values as integers.

    Raises:
      UsageError: if one depends on the size of the image.
    """
    if not all(isinstance(value, int | np.integer) for value in values):
        raise UsageError("the padding of a layer depends on the size of the image")
    return [int(value) for value in values]


def _reduce_sum(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    x, axes = graph.standard(x), set(parameters["axes"])
    left = tuple(() if axis in axes else each for axis, each in enumerate(x.axes))
    dims = permuted(left, standard_order(len(left)))
    kept = tuple(each for axis, each in enumerate(left) if axis not in axes)
    if len(x.axes) == 4 and axes == {1, 2}:
        height, width = x.shape[1:3]
        return Tensor(graph.add("GlobalAveragePool", x.name), dims, kept, height * width)
    places = sorted(standard_order(len(left)).index(axis) for axis in axes)
    return Tensor(graph.add("ReduceSum", x.name, graph.integers(*places)), dims, kept)


def _window_max(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    x = graph.standard(x)
    name = graph.add("MaxPool", x.name, **_window(parameters))
    return _with_sides(x, name, _window_sides(parameters))


def _window_sum(graph: Graph, parameters: Parameters, x: Tensor) -> Tensor:
    x = graph.standard(x)
    window = parameters["window_dimensions"]
    if window[:3] == (1, 1, 1) and len(window) == 4 and set(parameters["window_strides"]) == {1}:
        # There is no such operator: `onnx_merge` makes it a part of an LRN.
        size = window[3]
        if tuple(parameters["padding"][3]) != ((size - 1) // 2, size // 2):
            raise UsageError("sums over neighboring channels on one side are not supported")
        return x.replace(name=graph.add("ChannelSum", x.name, size=size))
    name = graph.add("AveragePool", x.name, **_window(parameters), count_include_pad=1)
    pooled = _with_sides(x, name, _window_sides(parameters))
    counts = _pixel_counts(x.shape[1:3], parameters)
    return pooled.replace(times=math.prod(window), counts=counts)


def _window(parameters: Parameters) -> dict[str, list[int]]:
    """Returns the attributes of a pool."""
    window, strides = parameters["window_dimensions"], parameters["window_strides"]
    if len(window) != 4 or window[::3] != (1, 1) or strides[::3] != (1, 1):
        raise UsageError("windows over images or channels are not supported")
    if {*parameters["window_dilation"], *parameters["base_dilation"]} != {1}:
        raise UsageError("a pool with dilation is not supported")
    low, high = zip(*parameters["padding"][1:3], strict=True)
    pads = _integers(*low, *high)
    return {"kernel_shape": list(window[1:3]), "strides": list(strides[1:3]), "pads": pads}


def _window_sides(parameters: Parameters) -> dict[int, Any]:
    return {axis: parameters["shape"][axis] for axis in (1, 2)}


def _pixel_counts(sides: Sequence[Any], parameters: Parameters) -> np.ndarray | None:
    """Returns the number of pixels without padding in each window; None if sides are unknown."""
    if not all(isinstance(side, int | np.integer) for side in sides):
        return None
    rows = []
    for axis, side in zip((1, 2), sides, strict=True):
        size, stride = parameters["window_dimensions"][axis], parameters["window_strides"][axis]
        starts = np.arange(parameters["shape"][axis]) * stride - parameters["padding"][axis][0]
        rows.append(np.minimum(starts + size, side) - np.maximum(starts, 0))
    return np.squeeze(np.multiply.outer(*rows)).astype(np.float32)


def _conv(graph: Graph, parameters: Parameters, x: Operand, kernel: Operand) -> Tensor:
    if not isinstance(x, Tensor) or not isinstance(kernel, Constant):
        raise UsageError("a convolution whose kernel depends on the image is not supported")
    if set(parameters["lhs_dilation"]) != {1} or parameters["batch_group_count"] != 1:
        raise UsageError("a transposed convolution is not supported")
    numbers = parameters["dimension_numbers"]
    x = graph.arranged(x, permuted(x.axes, numbers.lhs_spec))
    low, high = zip(*parameters["padding"], strict=True)
    weights = kernel.value.transpose(numbers.rhs_spec)
    name = graph.add(
        "Conv",
        x.name,
        Constant(weights, kernel.label),
        kernel_shape=list(weights.shape[2:]),
        strides=list(parameters["window_strides"]),
        pads=_integers(*low, *high),
        dilations=list(parameters["rhs_dilation"]),
        group=parameters["feature_group_count"],
    )
    shape = parameters["shape"]
    sides = [x.dims[0], *(new_axis(shape[axis]) for axis in numbers.out_spec[1:])]
    axes = [sides[numbers.out_spec.index(axis)] for axis in range(len(shape))]
    return Tensor(name, tuple(sides), tuple(axes))


def _dot(graph: Graph, parameters: Parameters, x: Operand, y: Operand) -> Tensor:
    (contracted_x, contracted_y), batched = parameters["dimension_numbers"]
    if any(batched) or (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise UsageError("a product of two arrays that depend on the image is not supported")
    if isinstance(x, Tensor) and isinstance(y, Constant):
        product, kept, new = _product(graph, x, contracted_x, y, contracted_y)
        return product.replace(axes=kept + new)
    assert isinstance(x, Constant)
    assert isinstance(y, Tensor)
    product, kept, new = _product(graph, y, contracted_y, x, contracted_x)
    return product.replace(axes=new + kept)


def _product(
    graph: Graph, x: Tensor, summed_axes: Sequence[int], constant: Constant, rows: Sequence[int]
) -> tuple[Tensor, Axes, Axes]:
    """Returns the product with a matrix, and the axes that are kept of x and new in it.

    The rows of the matrix are put into the order in which the tensor has them, as for the dense
    layer after a map, instead of transposing the map.
    """
    x = graph.multiplied(x)
    columns = [axis for axis in range(constant.value.ndim) if axis not in rows]
    new = tuple(new_axis(constant.value.shape[axis]) for axis in columns)
    kept = tuple(each for axis, each in enumerate(x.axes) if axis not in summed_axes)
    summed = flat(tuple(x.axes[axis] for axis in summed_axes))
    found = tuple(factor for factor in flat(x.dims) if factor in summed)
    matrix = constant.value.transpose(*rows, *columns)
    matrix = matrix.reshape(*(factor.size for factor in summed), -1)
    matrix = matrix.transpose(*(summed.index(factor) for factor in found), -1)
    matrix = matrix.reshape(math.prod(factor.size for factor in found), -1)
    if len(x.axes) == len(x.dims) == 4 and x.dims[1] == found:
        weights = Constant(matrix.T[:, :, None, None], constant.label)
        name = graph.add("Conv", x.name, weights, kernel_shape=[1, 1])
        return Tensor(name, (x.dims[0], flat(new), *x.dims[2:]), ()), kept, new
    left = (tuple(each for each in factors if each not in found) for factors in x.dims)
    dims = (*(factors for factors in left if factors), found)
    x = graph.arranged(x, dims)
    op = "Gemm" if len(dims) == 2 else "MatMul"
    name = graph.add(op, x.name, Constant(matrix, constant.label))
    return Tensor(name, (*dims[:-1], flat(new)), ()), kept, new


OPERATORS: dict[str, Callable[..., Any]] = ELEMENTWISE | {
    "convert_element_type": _cast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _window_max,
    "reduce_window_sum": _window_sum,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
}

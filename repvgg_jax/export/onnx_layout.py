"""Tensors of an ONNX graph, and how their dimensions relate to the axes of JAX's arrays.

JAX's images are [batch, height, width, channels] and ONNX's [batch, channels, height, width]. Each
dimension of a tensor, and each axis of the array that it stands for, is a product of factors. So
reshaping and transposing an array only changes the list of factors of its axes, and a `Reshape`,
`Transpose` or `Gather` is written only where an operator needs the tensor in another order.
"""

import dataclasses
import math
from typing import Any, Self

import numpy as np

from repvgg_jax.errors import UsageError


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """A factor of an axis.

    Attributes:
      size: an integer, or a symbolic dimension of `jax.export`.
      is_fixed: False if the graph is also for other sizes, as that of a batch.
    """

    size: Any
    is_fixed: bool = True


Axes = tuple[tuple[Factor, ...], ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the ONNX graph.

    Attributes:
      name: its name in the graph.
      dims: factors of each of its dimensions; a dimension without factors is of size 1.
      axes: the same factors, as those of the axes of the array that it stands for.
      times: number by which the tensor must still be multiplied; sums are written as means.
      counts: number of pixels, without padding, in each window of a sum over windows.
    """

    name: str
    dims: Axes
    axes: Axes
    times: Any = 1
    counts: np.ndarray | None = None

    @property
    def is_pending(self) -> bool:
        """True if the tensor must still be multiplied."""
        return not (isinstance(self.times, int | float) and self.times == 1)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Shape of the array."""
        return sizes(self.axes)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some attributes replaced."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array whose value is known, and a label for its name.

    Along symbolic axes, over which it is constant, its size is 1.
    """

    value: np.ndarray
    label: str = "constant"

    @property
    def is_scalar(self) -> bool:
        """True for a single number."""
        return self.value.size == 1


@dataclasses.dataclass
class Node:
    """An operator of the graph."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    @property
    def output(self) -> str:
        """Name of the first output."""
        return self.outputs[0]


def new_axis(size: Any) -> tuple[Factor, ...]:
    """Returns the factors of a new axis."""
    is_fixed = isinstance(size, int | np.integer)
    return () if is_fixed and size == 1 else (Factor(size, is_fixed),)


def sizes(axes: Axes) -> tuple[Any, ...]:
    """Returns the size of each axis."""
    return tuple(math.prod(factor.size for factor in factors) for factors in axes)


def flat(axes: Axes) -> tuple[Factor, ...]:
    """Returns the factors of all axes in order."""
    return tuple(factor for factors in axes for factor in factors)


def standard_order(rank: int) -> tuple[int, ...]:
    """Returns the axes in the order of ONNX: the channels of a map come before its pixels."""
    return (0, 3, 1, 2) if rank == 4 else tuple(range(rank))


def permuted(axes: Any, order: tuple[int, ...]) -> Any:
    """Returns the entries in another order."""
    return tuple(axes[index] for index in order)


def reshaped(tensor: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """Returns a tensor that stands for a reshaped array, by splitting factors where needed.

    Raises:
      UsageError: if a symbolic axis would be split.
    """
    left, axes, splits = list(flat(tensor.axes)), [], {}
    for size in shape:
        factors: list[Factor] = []
        while (missing := _quotient(size, factors)) != 1:
            factor = left.pop(0)
            if factor.size != missing and not _divides(factor.size, missing):
                if not _divides(missing, factor.size):
                    raise UsageError(f"a reshape from {tensor.shape} to {shape} is not supported")
                parts = Factor(missing), Factor(factor.size // missing)
                splits[factor] = parts
                factor, rest = parts
                left.insert(0, rest)
            factors.append(factor)
        axes.append(tuple(factors))
    return tensor.replace(dims=_split(tensor.dims, splits), axes=tuple(axes))


def _quotient(size: Any, factors: list[Factor]) -> Any:
    """Returns size / product of the factors, which divides it."""
    for factor in factors:
        size = 1 if factor.size == size else size // factor.size
    return size


def _divides(divisor: Any, size: Any) -> bool:
    quotient = size // divisor
    return quotient != 0 and quotient * divisor == size


def _split(dims: Axes, splits: dict[Factor, tuple[Factor, ...]]) -> Axes:
    while any(factor in splits for factor in flat(dims)):
        dims = tuple(
            tuple(part for factor in factors for part in splits.get(factor, (factor,)))
            for factors in dims
        )
    return dims


def spread(value: np.ndarray, axes: Axes, dims: Axes) -> np.ndarray:
    """Returns an array that broadcasts against axes, as one that broadcasts against dimensions."""
    value = value.reshape((1,) * (len(axes) - value.ndim) + value.shape)
    for axis, factors in enumerate(axes):
        if value.shape[axis] != 1 and not all(factor.is_fixed for factor in factors):
            first = value.take([0], axis)
            if not np.all((value == first) | ((value != value) & (first != first))):  # NaN is equal
                raise UsageError("the net adds different values to the images of a batch")
            value = first
    parts: list[int] = []
    for size, factors in zip(value.shape, axes, strict=True):
        parts += [1 if size == 1 else factor.size for factor in factors]
    order, source = flat(dims), flat(axes)
    value = value.reshape(parts).transpose([source.index(factor) for factor in order])
    given = iter(value.shape)
    shape = tuple(math.prod(next(given) for _ in factors) for factors in dims)
    if any(size not in (1, whole) for size, whole in zip(shape, sizes(dims), strict=True)):
        # A dimension of several factors, over some of which the array is constant.
        value, shape = np.broadcast_to(value, [factor.size for factor in order]), sizes(dims)
    return value.reshape(shape)


class Graph:
    """The nodes and initializers of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.scope = ""  # name of the layer that is being converted
        self._names: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """Returns the name, with a number if it is taken."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else self.unique(f"{name}_{count - 1}")

    def add(self, op: str, *inputs: str | Constant, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or the names of several."""
        given = [self.initializer(each) if isinstance(each, Constant) else each for each in inputs]
        base = "/".join(part for part in (self.scope, op) if part)
        names = [self.unique(base) for _ in range(outputs)]
        self.nodes.append(Node(op, given, names, attributes))
        return names[0] if outputs == 1 else names

    def initializer(self, constant: Constant) -> str:
        """Adds an initializer; returns its name."""
        if constant.value.dtype == object:
            raise UsageError("a constant of the net depends on the size of the image")
        name = self.unique(constant.label)
        self.initializers[name] = np.ascontiguousarray(constant.value)
        return name

    def integers(self, *values: int) -> str:
        """Adds an initializer of integers; returns its name."""
        return self.initializer(Constant(np.array(values, np.int64), "integers"))

    def producer(self, name: str) -> Node:
        """Returns the node with an output."""
        return next(node for node in reversed(self.nodes) if name in node.outputs)

    def multiplied(self, tensor: Tensor) -> Tensor:
        """Returns the tensor after multiplication by its `times`."""
        if not tensor.is_pending:
            return tensor
        if not isinstance(tensor.times, int | float):
            raise UsageError(f"a sum over {tensor.times} pixels is not supported, only a mean is")
        factor = Constant(np.asarray(tensor.times, np.float32), "times")
        return tensor.replace(name=self.add("Mul", tensor.name, factor), times=1)

    def standard(self, tensor: Tensor) -> Tensor:
        """Returns the tensor with a dimension for each axis, in the order of ONNX."""
        return self.arranged(tensor, permuted(tensor.axes, standard_order(len(tensor.axes))))

    def arranged(self, tensor: Tensor, dims: Axes) -> Tensor:
        """Returns the tensor with the given dimensions, by as few nodes as possible."""
        tensor = self.multiplied(tensor)
        if tensor.dims == dims:
            return tensor
        if flat(tensor.dims) == flat(dims):
            return self._reshape(tensor, dims)
        pairs = enumerate(zip(tensor.dims, dims, strict=False))
        moved = [axis for axis, (before, after) in pairs if before != after]
        fixed = all(factor.is_fixed for axis in moved for factor in tensor.dims[axis])
        if len(dims) == len(tensor.dims) and len(moved) == 1 and fixed:
            return self._gather(tensor, dims, moved[0])
        source = tuple((factor,) for factor in flat(tensor.dims))
        tensor = self._reshape(tensor, source)
        order = [source.index((factor,)) for factor in flat(dims)]
        name = self.add("Transpose", tensor.name, perm=order)
        return self._reshape(tensor.replace(name=name, dims=permuted(source, tuple(order))), dims)

    def _gather(self, tensor: Tensor, dims: Axes, axis: int) -> Tensor:
        """Reorders the elements of a single dimension, as in the shuffle of channels."""
        source, target = tensor.dims[axis], dims[axis]
        count = math.prod(factor.size for factor in source)
        index = np.arange(count).reshape([factor.size for factor in source])
        index = index.transpose([source.index(factor) for factor in target]).reshape(-1)
        name = self.add("Gather", tensor.name, Constant(index.astype(np.int64), "order"), axis=axis)
        return tensor.replace(name=name, dims=dims)

    def _reshape(self, tensor: Tensor, dims: Axes) -> Tensor:
        if tensor.dims == dims:
            return tensor
        if len(dims) == 2 and tensor.dims[:1] == dims[:1]:
            return tensor.replace(name=self.add("Flatten", tensor.name, axis=1), dims=dims)
        shape: list[int] = []
        for index, (factors, size) in enumerate(zip(dims, sizes(dims), strict=True)):
            if all(factor.is_fixed for factor in factors):
                shape.append(int(size))
            else:  # 0 copies a dimension, and -1 is what is left
                same = tensor.dims[index : index + 1] == (factors,)
                shape.append(0 if same else -1)
        if shape.count(-1) > 1:
            raise UsageError("two axes of unknown size would be moved, which is not supported")
        name = self.add("Reshape", tensor.name, self.integers(*shape))
        return tensor.replace(name=name, dims=dims)

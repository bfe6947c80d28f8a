"""ONNX graphs of nets, made from the operations that JAX traces in their evaluation.

Since the graph comes from the program that evaluates the net, it cannot be that of another net, and
no family needs code of its own. The sizes of the batch, and of the image if it may vary, are
symbolic in the trace, so that a graph that depends on them is an error.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.export import symbolic_shape

from repvgg_jax.errors import UsageError, one_line, reraise
from repvgg_jax.export.onnx_elementwise import ELEMENTWISE, Operand
from repvgg_jax.export.onnx_layout import (
    Axes,
    Constant,
    Factor,
    Graph,
    Tensor,
    new_axis,
    permuted,
    sizes,
)
from repvgg_jax.export.onnx_merge import merged
from repvgg_jax.export.onnx_operators import OPERATORS, full
from repvgg_jax.export.verification import Export
from repvgg_jax.runtime.devices import compiling_for

INPUT, OUTPUT = "images", "logits"


def make_graph(source: Export, dynamic_size: bool) -> Graph:
    """Returns the graph of a net, images [batch, 3, height, width] -> logits.

    The input is uint8 if `preprocess` of the metadata is True, and is then normalized in the graph.

    Raises:
      UsageError: if an operation of the net has no counterpart here, or depends on the size of the
        image although that may vary.
    """
    fixed = _input_axes(source.metadata.image_size, dynamic_size=False)
    if not dynamic_size:
        return _graph(source, fixed)

    def failed(error: Exception) -> UsageError:
        _graph(source, fixed)  # raises its own error if the net cannot be exported at all
        return UsageError(
            "the net cannot be exported with dynamic_size, since its operations depend on the "
            f"size of the image ({one_line(error, 80)})"
        )

    with reraise(Exception, failed):  # JAX raises many types for operations on symbolic sizes
        return _graph(source, _input_axes(source.metadata.image_size, dynamic_size=True))


def _graph(source: Export, axes: Axes) -> Graph:
    images = jax.ShapeDtypeStruct(sizes(axes), source.dtype)
    with compiling_for(jax.devices()[:1], xla_only=True):
        program = jax.make_jaxpr(source)(source.variables, images)
    graph = Graph()
    given: list[Operand] = [
        Constant(np.asarray(leaf), jax.tree_util.keystr(path[1:], simple=True, separator="/"))
        for path, leaf in jax.tree.leaves_with_path(source.variables)
    ]
    given.append(Tensor(graph.unique(INPUT), permuted(axes, (0, 3, 1, 2)), axes))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        (logits,) = _convert(graph, program.jaxpr, program.consts, given, "")
    if not isinstance(logits, Tensor):
        raise UsageError("the logits of this net do not depend on the image")
    graph.nodes = merged(graph, graph.standard(logits).name, OUTPUT)
    used = {name for node in graph.nodes for name in node.inputs}
    graph.initializers = {name: value for name, value in graph.initializers.items() if name in used}
    return graph


def _input_axes(size: int, dynamic_size: bool) -> Axes:
    """Returns the axes [batch, height, width, 3] of the images.

    The trace has a batch of two images if the size is fixed, since JAX traces slices with a
    symbolic batch as gathers. The file is verified with other batches.
    """
    if not dynamic_size:
        return (Factor(2, is_fixed=False),), (Factor(size),), (Factor(size),), (Factor(3),)
    limits = [f"height >= {size}", f"width >= {size}"]
    sides = symbolic_shape("batch, height, width", constraints=limits)
    return *(new_axis(side) for side in sides), (Factor(3),)


def _convert(
    graph: Graph, jaxpr: Any, constants: Iterable[Any], given: Sequence[Any], scope: str
) -> list[Any]:
    """Adds the operations of a jaxpr to the graph; returns its results."""
    known: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        if hasattr(atom, "val"):
            return Constant(np.asarray(atom.val, atom.aval.dtype))
        return known[atom]

    for variable, value in zip(jaxpr.constvars, constants, strict=True):
        known[variable] = value if isinstance(value, Operand) else Constant(np.asarray(value))
    known.update(zip(jaxpr.invars, given, strict=True))
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inner = f"{scope}/{equation.source_info.name_stack}"
        results = _apply(graph, equation, operands, inner)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, equation: Any, operands: list[Any], scope: str) -> Sequence[Any]:
    """Adds the operations of an equation to the graph; returns its results."""
    name, parameters = equation.primitive.name, equation.params
    if name == "scan":
        return _unrolled(graph, parameters, operands, scope)
    if name in _CALLS:
        program = next(parameters[key] for key in _PROGRAMS if key in parameters)
        body, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        return _convert(graph, body, constants, operands, scope)
    if name == "dim_as_value":
        return [Constant(np.asarray(parameters["dim"], object))]
    if all(isinstance(each, Constant) for each in operands):
        return _known(equation, operands)
    if name not in OPERATORS:
        raise UsageError(f"ONNX export does not know the operation {name} of JAX")
    shape = equation.outvars[0].aval.shape
    if name not in ELEMENTWISE:
        operands = [
            full(graph, each, atom.aval.shape) if isinstance(each, Tensor) else each
            for each, atom in zip(operands, equation.invars, strict=True)
        ]
    graph.scope = _layer(scope)
    if name == "convert_element_type" and equation.invars[0].aval.dtype == parameters["new_dtype"]:
        return operands
    result = OPERATORS[name](graph, parameters | {"shape": shape}, *operands)
    return result if isinstance(result, list) else [result]


# Operations that call a program, by their names in the versions of JAX, and its parameter.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _layer(scope: str) -> str:
    """Returns the name of the layer of a scope, without the net and its methods."""
    parts = [part for part in scope.split("/") if part and "." not in part]
    return "/".join(parts[1:])


def _known(equation: Any, operands: Sequence[Constant]) -> list[Constant]:
    """Returns the results of an equation whose operands are known."""
    primitive, parameters = equation.primitive, equation.params
    label = next((each.label for each in operands), "constant")
    values = [each.value for each in operands]
    shapes = [atom.aval.shape for atom in (*equation.invars, *equation.outvars)]
    if primitive.name == "convert_element_type" and values[0].dtype == object:
        return [operands[0]]  # a symbolic size
    if primitive.name in _NUMPY and {value.dtype for value in values} == {np.dtype(np.float32)}:
        return [Constant(np.asarray(_NUMPY[primitive.name](*values)), label)]
    if primitive.name == "reshape" and _are_known(shapes[-1:]):
        return [Constant(values[0].reshape(shapes[-1]), label)]
    if primitive.name == "broadcast_in_dim":
        return [Constant(_broadcast(values[0], **parameters), label)]
    if not _are_known(shapes) or any(value.dtype == object for value in values):
        raise UsageError(f"the operation {primitive.name} depends on the size of the image")
    results = primitive.bind(*values, **parameters)
    results = results if primitive.multiple_results else [results]
    return [Constant(np.asarray(each), label) for each in results]


# JAX would compile each of these for each shape.
_NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "rsqrt": lambda x: np.reciprocal(np.sqrt(x)),
}


def _are_known(shapes: Sequence[Any]) -> bool:
    return all(isinstance(side, int) for shape in shapes for side in shape)


def _broadcast(
    value: np.ndarray, shape: Sequence[Any], broadcast_dimensions: Sequence[int], **_: Any
) -> np.ndarray:
    """Returns the broadcast array, of size 1 along symbolic axes."""
    known = [side if isinstance(side, int) else 1 for side in shape]
    kept = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, value.shape, strict=True):
        kept[axis] = size
    return np.broadcast_to(value.reshape(kept), known)


def _unrolled(graph: Graph, parameters: Any, operands: list[Any], scope: str) -> list[Any]:
    """Adds the steps of a scan to the graph; returns its final carry."""
    body, length = parameters["jaxpr"], parameters["length"]
    fixed, carried = _constants_and_carry(parameters)
    constants, carry = operands[:fixed], operands[fixed : fixed + carried]
    stacked = operands[fixed + carried :]
    if len(body.out_avals) > carried or not all(isinstance(each, Constant) for each in stacked):
        raise UsageError("a scan over images, or with an output per step, is not supported")
    steps = range(length)
    for step in reversed(steps) if parameters["reverse"] else steps:
        slices = [Constant(each.value[step], f"{each.label}/{step}") for each in stacked]
        carry = _convert(
            graph, body.jaxpr, body.consts, [*constants, *carry, *slices], f"{scope}/{step}"
        )
    return carry


def _constants_and_carry(parameters: Any) -> tuple[int, int]:
    """Returns the numbers of a scan's constants and of its carried values."""
    if "ft_in" in parameters:  # from JAX 0.11 on
        constants, carry, _ = map(len, parameters["ft_in"].unpack())
        return constants, carry
    return parameters["num_consts"], parameters["num_carry"]

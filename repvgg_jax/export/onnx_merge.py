"""Merges operators of an ONNX graph into the ones that runtimes know."""

from collections import Counter

import numpy as np

from repvgg_jax.errors import UsageError
from repvgg_jax.export.onnx_layout import Constant, Graph, Node


def merged(graph: Graph, result: str, name: str) -> list[Node]:
    """Returns the nodes that `result` needs, merged where possible; its new name is `name`.

    | operators                        | become             |
    |----------------------------------|--------------------|
    | Conv, Add of a vector            | Conv               |
    | Gemm, Add of a vector            | Gemm               |
    | Sub, Mul, Add of vectors         | BatchNormalization |
    | Relu, Min of a number            | Clip               |
    | x / (k + a * sums of x * x) ** b | LRN                |
    """
    merge = _Merge(graph, result)
    for node in graph.nodes:
        merge.visit(node)
    nodes = _needed(merge.nodes, result)
    for node in nodes:
        if node.op == "ChannelSum":
            raise UsageError("a sum over neighboring channels is supported in an LRN only")
        node.outputs = [name if each == result else each for each in node.outputs]
        node.inputs = [name if each == result else each for each in node.inputs]
    return nodes


def _needed(nodes: list[Node], result: str) -> list[Node]:
    """Returns the nodes on which the result depends."""
    needed, kept = {result}, []
    for node in reversed(nodes):
        if needed & {*node.outputs}:
            kept.append(node)
            needed |= {*node.inputs}
    return kept[::-1]


class _Merge:
    """The nodes that have been visited; later ones are merged into those that they read alone."""

    def __init__(self, graph: Graph, result: str) -> None:
        self.graph = graph
        nodes = _needed(graph.nodes, result)
        self.uses = Counter(name for node in nodes for name in node.inputs)
        self.uses[result] += 1
        self.nodes: list[Node] = []
        self.made: dict[str, Node] = {}

    def visit(self, node: Node) -> None:
        """Adds a node, or merges it into earlier ones."""
        merged = getattr(self, f"_{node.op.lower()}", lambda node: None)(node) or node
        self.nodes.append(merged)
        self.made |= dict.fromkeys(merged.outputs, merged)

    def _source(self, name: str, *ops: str) -> Node | None:
        """Returns the node of an output if it is of one of the operators and has one reader."""
        node = self.made.get(name)
        return node if node and node.op in ops and self.uses[name] == 1 else None

    def _vector(self, name: str, rank: int) -> np.ndarray | None:
        """Returns an initializer that has a value for each channel of a map, or each output."""
        value = self.graph.initializers.get(name)
        if value is None or value.dtype != np.float32 or value.ndim != rank:
            return None
        return value.reshape(-1) if value.size == len(value) else None

    def _new(self, value: np.ndarray, like: str) -> str:
        return self.graph.initializer(Constant(value, like))

    def _add(self, node: Node) -> Node | None:
        first, second = node.inputs
        source = self._source(first, "Conv", "Gemm")
        if source and len(source.inputs) == 2:
            vector = self._vector(second, 3 if source.op == "Conv" else 1)
            outputs = self.graph.initializers[source.inputs[1]].shape
            if vector is not None and len(vector) == outputs[0 if source.op == "Conv" else 1]:
                inputs = [*source.inputs, self._reshape_initializer(second, vector)]
                return Node(source.op, inputs, node.outputs, source.attributes)
        return self._batch_norm(node)

    def _reshape_initializer(self, name: str, vector: np.ndarray) -> str:
        """Reshapes an initializer, or adds a copy if something else reads it; returns the name."""
        if self.uses[name] > 1:
            return self._new(vector, name)
        self.graph.initializers[name] = vector
        return name

    def _batch_norm(self, node: Node) -> Node | None:
        scaled = self._source(node.inputs[0], "Mul")
        centered = scaled and self._source(scaled.inputs[0], "Sub")
        if scaled is None or centered is None:
            return None
        names = [scaled.inputs[1], node.inputs[1], centered.inputs[1]]
        vectors = [self._vector(name, 3) for name in names]
        lengths = {None if vector is None else len(vector) for vector in vectors}
        if None in lengths or len(lengths) > 1:
            return None
        parts = [
            self._reshape_initializer(name, vector)
            for name, vector in zip(names, vectors, strict=True)
            if vector is not None
        ]
        # The net's epsilon is in the scale already.
        parts.append(self._new(np.ones(lengths.pop() or 0, np.float32), f"{names[0]}/variance"))
        inputs = [centered.inputs[0], *parts]
        return Node("BatchNormalization", inputs, node.outputs, {"epsilon": 0.0})

    def _min(self, node: Node) -> Node | None:
        source, limit = self._source(node.inputs[0], "Relu"), node.inputs[1]
        value = self.graph.initializers.get(limit)
        if source is None or value is None or value.size != 1 or value.item() < 0:
            return None
        low = self._new(np.zeros((), np.float32), "zero")
        inputs = [source.inputs[0], low, self._reshape_initializer(limit, value.reshape(()))]
        return Node("Clip", inputs, node.outputs, {})

    def _div(self, node: Node) -> Node | None:
        power = self._source(node.inputs[1], "Pow")
        biased = power and self._source(power.inputs[0], "Add")
        scaled = biased and self._source(biased.inputs[0], "Mul")
        sums = scaled and self._source(scaled.inputs[0], "ChannelSum")
        square = sums and self._source(sums.inputs[0], "Mul")
        if not (power and biased and scaled and sums and square):
            return None
        if square.inputs != [node.inputs[0]] * 2:
            return None
        readers = power, biased, scaled
        constants = [self.graph.initializers.get(each.inputs[1]) for each in readers]
        if any(each is None or each.size != 1 for each in constants):
            return None
        beta, bias, alpha = (float(each.item()) for each in constants if each is not None)
        size = sums.attributes["size"]
        attributes = {"alpha": alpha * size, "beta": beta, "bias": bias, "size": size}
        return Node("LRN", node.inputs[:1], node.outputs, attributes)

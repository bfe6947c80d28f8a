"""Collectives of a compiled program, read from its optimized HLO."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" ({'|'.join(COLLECTIVES)})(-start)?\(")
_OPCODE = re.compile(r" [a-z][a-z-]*\(")
_ARRAY = re.compile(r"\b(pred|bf\d+|[suf]\d+|f\d+e\w+|c\d+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.$-]+)"
)
_BOUND = re.compile(r" s\d+\[\]\S* constant\((\d+)\)")


class Traffic(NamedTuple):
    """The communication of one execution of a program."""

    collectives: dict[str, tuple[int, int]]  # kind -> (number, bytes of results on a device)
    loops: int  # loops with more than one trip


def traffic(text: str) -> Traffic:
    """Counts the collectives of one execution of an optimized HLO module.

    Collectives in a loop count once per trip if the text states the number of trips, as for
    `jax.lax.scan`, and otherwise once. Those in branches of a conditional count once. A start and
    its done are one collective. In TPU programs, some collectives are inside fusions, and an
    asynchronous one appears in its start, fused steps and done; only the start counts. A fusion
    named `all-reduce-scatter` counts as a reduce-scatter.
    """
    computations, entry = _computations(text)
    times = defaultdict(int, {entry: 1})
    counts: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = defaultdict(int)
    loops = 0
    for name in reversed(computations):  # callers come after the computations they call
        lines = computations[name]
        for line in lines:
            for called, trips in _calls(line, computations):
                times[called] += times[name] * trips
                loops += trips > 1
            if found := _COLLECTIVE.search(line):
                kind, result = found[1], line[: found.start()].split(" = ", 1)[-1]
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    root = next(line for line in lines if line.startswith("  ROOT"))
                    kind, result = "reduce-scatter", _OPCODE.split(root.split(" = ", 1)[1])[0]
                elif found[2] and kind in ("all-gather", "collective-permute"):
                    result = _elements(result)[1]  # a tuple (operand, result, ...)
                counts[kind] += times[name]
                sizes[kind] += times[name] * shape_bytes(result)
    found = {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}
    return Traffic(found, loops)


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape in HLO, `f32[8,16]{1,0}` or a tuple of shapes."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += -(-bits * math.prod(int(dim) for dim in dims.split(",") if dim) // 8)
    return total


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the instructions of every computation by name, in order, and the entry's name."""
    computations: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
            computations[name] = []
        elif name and line.startswith("  "):
            computations[name].append(line)
        elif line.startswith("}"):
            name = ""
    return computations, entry


def _calls(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """Yields each computation that an instruction calls, and the number of calls."""
    if re.match(r"  (ROOT )?%?async-(collective-)?(done|update)", line):
        return  # the computation runs at the start only
    called = [
        (role, name)
        for role, names in _CALLED.findall(line)
        for name in re.findall(r"[\w.$-]+", names)
        if name in computations and not name.startswith("async_collective_fusion")
    ]
    condition = next((name for role, name in called if role == "condition"), None)
    trips = _trips(line, computations[condition]) if condition else 1
    yield from ((name, trips if role == "body" else 1) for role, name in called)


def _trips(line: str, condition: list[str]) -> int:
    """Returns a loop's trips, as annotated or from its condition `i < bound`; 1 if unknown."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    bounds = [int(found[1]) for text in condition if (found := _BOUND.search(text))]
    counts_up = any(" compare(" in text and "direction=LT" in text for text in condition)
    return bounds[0] if len(bounds) == 1 and counts_up else 1


def _elements(shape: str) -> list[str]:
    """Splits the shape of a tuple, `(a, (b, c), d)`, into its elements."""
    parts, depth = [""], 0
    for character in shape.strip()[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts

"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

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
    """What a program sends in one execution.

    Attributes:
      collectives: kind -> (how many, bytes of their results on one device); kinds it lacks are left
        out.
      loops: how many loops the program has that go round more than once.
    """

    collectives: dict[str, tuple[int, int]]
    loops: int


def traffic(text: str) -> Traffic:
    """The collectives of an optimized HLO module, each as often as one execution runs it.

    A loop's collectives count once a trip where the text tells the trips, as it does of
    `jax.lax.scan`; else, and in each branch of a conditional, once. A pair of start and done is
    one collective. TPU programs hide some in fusions: of a started one, its fused steps on the way
    and its done all repeat the operation, and only the start counts; a fusion `all-reduce-scatter`
    is a reduce-scatter.
    """
    computations, entry = _computations(text)
    times = defaultdict(int, {entry: 1})
    counts, sizes, loops = defaultdict(int), defaultdict(int), 0
    for name in reversed(computations):  # a computation is written before those that call it
        scatter, lines = name.startswith("all-reduce-scatter"), computations[name]
        for line in lines:
            for called, trips in _calls(line, computations):
                times[called] += times[name] * trips
                loops += trips > 1
            if found := _COLLECTIVE.search(line):
                kind, result = found[1], line[: found.start()].split(" = ", 1)[-1]
                if scatter and kind == "all-reduce":
                    root = next(line for line in lines if line.startswith("  ROOT"))
                    kind, result = "reduce-scatter", _OPCODE.split(root.split(" = ", 1)[1])[0]
                elif found[2] and kind in ("all-gather", "collective-permute"):
                    result = _elements(result)[1]  # of (operand, result, ...)
                counts[kind] += times[name]
                sizes[kind] += times[name] * shape_bytes(result)
    return Traffic(
        {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}, loops
    )


def shape_bytes(shape: str) -> int:
    """Bytes of a shape as HLO writes it, `f32[8,16]{1,0}` or a tuple of such; tokens have none."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += -(-bits * math.prod(int(dim) for dim in dims.split(",") if dim) // 8)
    return total


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> instructions of every computation, in the order written, and the entry's name."""
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
    """Each computation that an instruction runs, and how often."""
    if re.match(r"  (ROOT )?%?async-(collective-)?(done|update)", line):
        return  # what was started is not run again
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
    """How often a loop goes round: as the instruction says, or by its condition `i < bound`."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    bounds = [int(found[1]) for text in condition if (found := _BOUND.search(text))]
    counts_up = any(" compare(" in text and "direction=LT" in text for text in condition)
    return bounds[0] if len(bounds) == 1 and counts_up else 1


def _elements(shape: str) -> list[str]:
    """The parts of a tuple `(a, (b, c), d)`, split at its own commas."""
    parts, depth = [""], 0
    for sign in shape.strip()[1:-1]:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts

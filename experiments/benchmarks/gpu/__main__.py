"""Measures this package on a GPU beside PyTorch, in at most five minutes.

  python -m experiments.benchmarks.gpu [--batch=128] [--config.FIELD=VALUE ...]

Measures training steps and forward passes of RepVGG-B1, here and in PyTorch with and without
torch.compile, and the training of small nets, whose config fields can be set, on random images of
CIFAR-10's size. Each part has the GPU to itself, in a process of its own. A measurement that fails
takes a line of the output, and the others are made; parts for which no time is left are skipped.
Rows are appended to a file as they come; the tables at the end are Markdown, for
docs/notes/speed_gpu.md. With small sizes, all of it runs on a CPU.
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.flags import add_flags, check_parts, given_sizes
from experiments.benchmarks.gpu.part import PARTS
from experiments.benchmarks.gpu.sizes import Sizes
from experiments.benchmarks.gpu.table import line, tables
from experiments.benchmarks.parts import Part, run_parts
from experiments.sweeps.expand import parse_overrides
from experiments.sweeps.flags import Parser, path_type, run_command, writing
from repvgg_jax.config.build import check_config
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.runtime.devices import devices_here
from repvgg_jax.runtime.files import append_row
from repvgg_jax.version import git_commit

OUTPUT = Path("runs/bench/gpu.jsonl")


def main() -> None:
    """Runs the parts and prints the tables."""
    options, fields = _parser().parse_known_args()
    sizes = _sizes(options, parse_overrides(fields))
    with writing(options.output.parent):
        options.output.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends the part as well
    rows, interrupted = [], False
    try:
        for row in _rows(options, sizes):
            append_row(options.output, row)
            rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
    if any("figure" in row and "error" not in row for row in rows):
        print(f"\n{tables(rows, sizes)}\n\nrows: {options.output}")
    elif not interrupted:
        raise RunError("nothing was measured")
    if interrupted:
        print("interrupted; the other figures were not measured", file=sys.stderr)
        sys.exit(130)


def _parser() -> Parser:
    parser = Parser(__doc__)
    add_flags(parser, Sizes, PARTS)
    parser.add_argument("--output", type=path_type, default=OUTPUT, help=f"rows; {OUTPUT}")
    return parser


def _sizes(options: argparse.Namespace, fields: Mapping[str, Any]) -> Sizes:
    """Returns the sizes, after checking all that can be checked before the first part starts."""
    given = given_sizes(options, Sizes)
    for name, value in [*given.items(), ("minutes", options.minutes)]:
        if not isinstance(value, str) and value <= 0:
            raise UsageError(f"--{name}={value}: must be positive")
    check_parts(options.only, PARTS)
    sizes = Sizes(platform=devices_here(os.environ)[0], fields=fields, **given)
    sizes.make_net()
    check_config(sizes.make_config("cifar10_short"))
    return sizes


def _rows(options: argparse.Namespace, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yields the rows of all parts, and prints each."""
    command = shlex.join(["python", "-m", "experiments.benchmarks.gpu", *sys.argv[1:]])
    about = {"date": time.strftime("%Y-%m-%d"), "command": command, **git_commit()}
    about["sizes"] = dataclasses.asdict(sizes)
    parts = [_part(name, sizes) for name in options.only.split(",")]
    for row in run_parts(parts, options.minutes, options.output, line):
        yield row | about


def _part(name: str, sizes: Sizes) -> Part:
    # In PyTorch's parts, JAX must not reserve memory of the GPU.
    environment = {"JAX_PLATFORMS": "cpu"} if "torch" in name else {}
    command = ["-m", "experiments.benchmarks.gpu.part", name, json.dumps(dataclasses.asdict(sizes))]
    return Part(name, command, environment)


if __name__ == "__main__":
    sys.exit(run_command(main))

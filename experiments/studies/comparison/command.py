"""Compares nets with RepVGG on this machine's device: costs, speed and published accuracy.

  python -m experiments.comparison [--nets=resnet18,repvgg_a0] [--only=nets,steps] [--batch=128]

Measures the nets of Tables 4 and 5 of the RepVGG paper in these parts, in this order: `counts`
(parameters and operations, without a device), `kernels` (the paper's Table 1), `guidelines` (the
four of ShuffleNetV2), `nets` (forward passes of the fused form) and `steps` (training steps). Each
part has the device to itself, in a process of its own. A net that fails is reported in a line, and
the others are measured. After --minutes, the rest is left out; the next call measures it, since it
skips what has a row. The rows, a page with all of them and figures are written to --out, by default
into the repository: use --out=runs/comparison for a trial.
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.flags import add_flags, check_parts, given_sizes
from experiments.benchmarks.parts import Part, run_parts
from experiments.studies.comparison.measured import setups
from experiments.studies.comparison.nets import COUNTS
from experiments.studies.comparison.page import FILE, sections, write_page
from experiments.studies.comparison.part import PARTS
from experiments.studies.comparison.sizes import ON_A_CPU, Sizes, read_rows
from experiments.studies.comparison.tables import line
from experiments.studies.pages import DOCS
from experiments.sweeps.flags import Parser, path_type, run_command, writing
from repvgg_jax.errors import RunError, UsageError, one_line
from repvgg_jax.nets import check_model
from repvgg_jax.runtime.devices import devices_here
from repvgg_jax.runtime.files import append_row
from repvgg_jax.version import git_commit

LOGS = Path("runs/bench")  # folder of the parts' messages


def main(arguments: Sequence[str]) -> int:
    """Runs the comparison and returns the exit code, see `repvgg_jax.errors`."""
    return run_command(lambda: _compare(arguments))


def _compare(arguments: Sequence[str]) -> None:
    platform, _ = devices_here(os.environ)
    options = _parser(platform).parse_args(arguments)
    output = options.out / f"{FILE}.jsonl"
    sizes = _sizes(options, platform, str(output))
    for folder in (options.out, LOGS):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends the part as well
    new, errors, interrupted = [], [], False
    try:
        for row in _rows(options, sizes, arguments):
            if "error" in row:
                errors.append(line(row))
            else:
                append_row(output, row)
                new.append(row)
    except KeyboardInterrupt:
        interrupted = True
    rows = read_rows(output)
    if not rows and not interrupted:
        raise RunError("nothing was measured")
    for setup in setups(new or rows):
        print("\n\n".join(["", str(setup), *sections(rows, setup)]))
    print("".join(f"\n{text}" for text in errors))
    with writing(options.out):
        print("\n".join(map(str, [output, *write_page(rows, options.out)])))
    if interrupted:
        print("interrupted; the next call measures the rest", file=sys.stderr)
        sys.exit(130)
    if errors and not new:
        raise RunError(f"nothing was measured: {errors[0]}")


def _parser(platform: str) -> Parser:
    parser = Parser(__doc__)
    add_flags(parser, Sizes, PARTS)
    if platform == "cpu":
        parser.set_defaults(**ON_A_CPU)
    text = "folder of the rows, the page and its figures; docs/results by default"
    parser.add_argument("--out", type=path_type, default=DOCS, help=text)
    return parser


def _sizes(options: argparse.Namespace, platform: str, output: str) -> Sizes:
    """Returns the sizes, after checking all that can be checked before the first part starts."""
    given = given_sizes(options, Sizes)
    if options.minutes < 0:
        raise UsageError(f"--minutes={options.minutes}: must be 0 (only write the page) or more")
    check_parts(options.only, PARTS)
    sizes = Sizes(platform=platform, output=output, **given)
    sizes.check()
    check_model(sizes.reference)
    known = [name for name in sizes.names() if _is_known(name)]
    if not known:
        raise UsageError(f"--nets={sizes.nets}: no known net; rj.list_models() names them")
    return dataclasses.replace(sizes, nets=",".join(known))


def _is_known(net: str) -> bool:
    """Returns True for a name of a net; prints a line for another."""
    try:
        check_model(net)
    except UsageError as error:
        print(f"left out: {one_line(error, 120)}", file=sys.stderr)
        return False
    return True


def _rows(
    options: argparse.Namespace, sizes: Sizes, arguments: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of all parts, and prints each."""
    flags = [text for text in arguments if not text.startswith("--out=")]
    command = shlex.join(["python", "-m", "experiments.comparison", *flags])
    about = {"date": time.strftime("%Y-%m-%d"), "command": command, **git_commit()}
    names = options.only.split(",") if options.minutes else []
    parts = [_part(name, sizes) for name in names]
    for row in run_parts(parts, options.minutes, LOGS / FILE, line):
        yield row | about


def _part(name: str, sizes: Sizes) -> Part:
    environment = {"JAX_PLATFORMS": "cpu"} if name == COUNTS else {}
    module = "experiments.studies.comparison.part"
    return Part(name, ["-m", module, name, json.dumps(dataclasses.asdict(sizes))], environment)

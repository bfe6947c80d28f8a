"""Measures images per second of each variant, in training and as deployed.

  python -m experiments.throughput

All variants of the sweeps that have rows are measured interleaved in one process on one device, and
identical programs once, so that differences are due to the nets (the runs themselves take place at
different times). A variant that cannot be fused is deployed in its train form. Writes
`experiments/results/throughput.json` for the report; run nothing else on the machine meanwhile.
"""

import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import (
    LENGTH,
    PROTOCOLS,
    Run,
    expand,
    extra_overrides,
    is_current_variant,
)
from experiments.sweeps.flags import Parser, path_type, run_command, writing
from experiments.sweeps.rows import RESULTS, device_name, read_sweeps
from repvgg_jax.bench.aot import lower_step
from repvgg_jax.bench.models import repeated_step
from repvgg_jax.bench.timing import time_interleaved
from repvgg_jax.config.build import make_net
from repvgg_jax.errors import UsageError
from repvgg_jax.nets import abstract
from repvgg_jax.runtime.compilation import temporaries_bytes
from repvgg_jax.runtime.devices import cpu_cores
from repvgg_jax.runtime.files import read_json, write_json
from repvgg_jax.runtime.processes import prepare_process
from repvgg_jax.version import git_commit

FILE = "throughput.json"
VERSION = 2
ROUNDS = 10
# Fields that change the deployed net.
_DEPLOYED = re.compile(r"model\.|data\.(eval_)?image_size$")
_Figures = dict[str, dict[str, dict[str, Any]]]  # sweep -> variant -> name -> value
# A lowered program, and a function that makes the compiled program callable without arguments.
_Lowered = tuple[jax.stages.Lowered, Callable[[jax.stages.Compiled], Callable[[], Any]]]


def measure(runs: Sequence[Run], rounds: int = ROUNDS) -> dict[str, Any]:
    """Returns the setup, and figures by sweep and variant, from one run for each variant."""
    return {
        "version": VERSION,
        "protocol": runs[0].protocol,
        "device": device_name(f"{jax.devices()[0].device_kind} x1", cpu_cores()),
        "batch": runs[0].config().train.batch_size,
        "rounds": rounds,
        **git_commit(),
        "training": _interleaved(runs, _training_step, rounds),
        "deployed": _interleaved(runs, _deployed_forward, rounds),
    }


def _interleaved(
    runs: Sequence[Run], lower: Callable[[ConfigDict], _Lowered], rounds: int
) -> _Figures:
    """Returns seconds per batch, images per second and bytes of temporaries of each variant."""
    programs: dict[str, Callable[[], Any]] = {}  # keyed by the text of the uncompiled program
    temporaries: dict[str, int | None] = {}
    texts = {}
    for run in runs:
        lowered, prepare = lower(run.config())
        text = texts[run.sweep, run.name] = lowered.as_text()
        if text not in programs:
            compiled = lowered.compile()
            programs[text] = prepare(compiled)
            temporaries[text] = temporaries_bytes(compiled)
    times = time_interleaved(programs, rounds)
    batch = runs[0].config().train.batch_size
    found: _Figures = {}
    for (sweep, name), text in texts.items():
        seconds = statistics.median(times[text])
        found.setdefault(sweep, {})[name] = {
            "seconds": float(f"{seconds:.4g}"),
            "images_per_second": float(f"{batch / seconds:.4g}"),
            "temporaries_bytes": temporaries[text],
        }
    return found


def _training_step(config: ConfigDict) -> _Lowered:
    lowered, arguments = lower_step(config, jax.devices()[:1])

    def prepare(step: jax.stages.Compiled) -> Callable[[], Any]:
        state, batch, _ = arguments
        return repeated_step(step, *_zeros_of((state, batch)), jax.random.key(0))

    return lowered, prepare


def _deployed_forward(config: ConfigDict) -> _Lowered:
    size = config.data.eval_image_size or config.data.image_size
    net = make_net(config)
    if net.fusable:
        net = net.clone(block="fused")
    else:  # deployed in its train form
        logging.info("%s cannot be fused", config.model.block)
    variables = abstract(net)
    images = jax.ShapeDtypeStruct((config.train.batch_size, size, size, 3), net.dtype)
    lowered = jax.jit(partial(net.apply, train=False)).lower(variables, images)
    return lowered, lambda forward: partial(forward, *_zeros_of((variables, images)))


def _zeros_of(shapes: Any) -> Any:
    """Returns arrays of zeros with these shapes and shardings."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes
    )


def read_records(results: Path) -> list[dict[str, Any]]:
    """Returns a record for each protocol; raises UsageError for a file of another version."""
    path = results / FILE
    again = "remove it and measure again: python -m experiments.throughput"
    records = read_json(path, again, list) if path.exists() else []
    for record in records:
        version = record.get("version") if isinstance(record, dict) else None
        if version != VERSION:
            raise UsageError(
                f"{path}: version {version}, but this code reads version {VERSION}; {again}"
            )
    return records


def with_throughput(rows: Sequence[dict[str, Any]], results: Path) -> list[dict[str, Any]]:
    """Returns the rows, with `throughput` added if their variant was measured in their protocol.

    `throughput` is `{"training": ..., "deployed": ..., "measured": how, "by": rounds and commit}`.
    `deployed` is omitted if the row's overrides change the net or the image size, and `training`
    if they change anything but the length of the run.
    """
    by_protocol = {record["protocol"]: record for record in read_records(results)}
    return [row | _throughput(row, by_protocol.get(row.get("protocol"))) for row in rows]


def _throughput(row: dict[str, Any], record: dict[str, Any] | None) -> dict[str, Any]:
    sweep, name = row["sweep"], row["name"]
    if record is None or not is_current_variant(row):
        return {}
    changed = extra_overrides(row).keys() - LENGTH
    tasks = {"training": not changed, "deployed": not any(map(_DEPLOYED.match, changed))}
    figures = {task: record[task].get(sweep, {}).get(name) for task, same in tasks.items() if same}
    found = {task: figure for task, figure in figures.items() if figure}
    words = f"batch {record['batch']}, {record['device']}"
    by = f"{record['rounds']} rounds, commit `{(record['commit'] or 'unknown')[:10]}`"
    return {"throughput": {**found, "measured": words, "by": by}} if found else {}


def main(arguments: Sequence[str]) -> int:
    """Measures one protocol and returns the exit code, see `repvgg_jax.errors`."""
    return run_command(lambda: _measure_protocol(arguments))


def _measure_protocol(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="cifar10_short",
        help="protocol whose nets are measured",
    )
    parser.add_argument("--results", type=path_type, default=RESULTS, help="folder of result rows")
    options = parser.parse_args(arguments)
    path = options.results / FILE
    recorded = {
        row["sweep"]
        for row in read_sweeps(options.results)
        if row["protocol"] == options.protocol
        and is_current_variant(row)
        and not extra_overrides(row).keys() - LENGTH
    }
    sweeps = [sweep for sweep in SWEEPS if sweep in recorded]
    if not sweeps:
        raise UsageError(
            f"no rows of {options.protocol} without net overrides in {options.results}/*.jsonl; "
            "first run a sweep without --config fields that change its nets"
        )
    runs = [run for sweep in sweeps for run in expand(sweep, options.protocol, seeds=[0])]
    others = [r for r in read_records(options.results) if r["protocol"] != options.protocol]
    prepare_process(deterministic=False)
    record = measure(runs)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [*others, record])
    for task in ("training", "deployed"):
        for sweep, variants in record[task].items():
            rates = (f"{name} {of['images_per_second']:,.0f}" for name, of in variants.items())
            print(f"{task}, {sweep}: {', '.join(rates)}")
    print(f"images/s, {record['device']}, batch {record['batch']}; {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Images a second of what each variant deploys, for the report: `python -m experiments.throughput`.

All variants of the sweeps that have rows are measured by turns in one process, on one device, and
those that fuse to one and the same program are measured once: what is left between two figures is
the nets' own difference. Where a variant cannot be fused its train form is what it deploys. Writes
`experiments/results/throughput.json`; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import linen as nn

from experiments.results import RESULTS, cpu_cores, device_words, read_sweeps
from experiments.run_one import git_commit
from experiments.sweeps import PROTOCOLS, SWEEPS, Run, expand
from repvgg_jax import fuse, init
from repvgg_jax.config import make_net
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.records import write_json
from repvgg_jax.timing import take_turns

FILE = "throughput.json"
VERSION = 1
BATCH, ROUNDS = 128, 20


def measure(runs: Iterable[Run], batch: int = BATCH, rounds: int = ROUNDS) -> dict[str, Any]:
    """The record of one protocol: how it was measured, and sweep -> variant -> images a second.

    Args:
      runs: of one protocol, one seed of each variant.
      batch: images in a forward pass.
      rounds: of which the median counts.
    """
    runs = list(runs)
    programs: dict[str, Callable[[], Any]] = {}  # by their text before they are compiled
    deployed = {}
    for run in runs:
        lowered, variables, images = _lower(run, batch)
        text = deployed[run.sweep, run.name] = lowered.as_text()
        if text not in programs:
            zeros = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (variables, images)
            )
            programs[text] = partial(lowered.compile(), *zeros)
    times = take_turns(programs, rounds)
    found: dict[str, dict[str, float]] = {}
    for (sweep, name), text in deployed.items():
        rate = batch / statistics.median(times[text])
        found.setdefault(sweep, {})[name] = float(f"{rate:.4g}")
    return {
        "version": VERSION,
        "protocol": runs[0].protocol,
        "device": device_words(f"{jax.devices()[0].device_kind} x1", cpu_cores()),
        "batch": batch,
        "rounds": rounds,
        **git_commit(),
        "images_per_second": found,
    }


def _lower(run: Run, batch: int) -> tuple[jax.stages.Lowered, Any, Any]:
    """The forward pass that the run's variant deploys, and the shapes of what it takes."""
    config = run.config()
    size = config.data.eval_image_size or config.data.image_size
    net = make_net(config)
    variables = jax.eval_shape(lambda key: init(net, key, size), jax.random.key(0))
    try:
        net, variables = _fused_shapes(net, variables)
    except UsageError:  # no convolution equals its block, and it deploys as it is
        logging.info("%s/%s cannot be fused", run.sweep, run.name)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), net.dtype)
    forward = jax.jit(partial(net.apply, train=False))
    return forward.lower(variables, images), variables, images


def _fused_shapes(net: nn.Module, variables: Any) -> tuple[nn.Module, Any]:
    plain: list[nn.Module] = []

    def fused(variables: Any) -> Any:
        module, tree = fuse(net, variables)
        plain.append(module)
        return tree

    shapes = jax.eval_shape(fused, variables)
    return plain[0], shapes


def read_records(results: Path) -> list[dict[str, Any]]:
    """What was measured, a record a protocol.

    Raises:
      UsageError: for a file of another version.
    """
    path = results / FILE
    records = json.loads(path.read_text()) if path.exists() else []
    if versions := {record.get("version") for record in records} - {VERSION}:
        raise UsageError(
            f"{path}: version {min(map(str, versions))}, where this code reads {VERSION}; "
            "remove it, and python -m experiments.throughput writes it anew"
        )
    return records


def with_throughput(rows: Sequence[dict[str, Any]], results: Path) -> list[dict[str, Any]]:
    """The rows, with `throughput` where their variant's was measured in their protocol.

    A row whose command changed fields of the model is of another net, and is left as it is.

    Raises:
      UsageError: as `read_records`.
    """
    by_protocol = {record["protocol"]: record for record in read_records(results)}
    return [row | _throughput(row, by_protocol.get(row.get("protocol"))) for row in rows]


def _throughput(row: dict[str, Any], record: dict[str, Any] | None) -> dict[str, Any]:
    sweep, name = row.get("sweep"), row.get("name")
    rates = record["images_per_second"].get(sweep, {}) if record else {}
    if name not in rates or sweep not in SWEEPS or name not in SWEEPS[sweep].variants:
        return {}
    own = SWEEPS[sweep].own(name)
    given = row.get("overrides") or {}
    changed = {field for field in own | given if own.get(field) != given.get(field)}
    if any(field.startswith(("model.", "data.")) for field in changed):
        return {}
    words = f"batch {record['batch']}, {record['device']}"
    return {"throughput": {"images_per_second": rates[name], "measured": words}}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="cifar10_short")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    path = options.results / FILE
    try:
        recorded = {row["sweep"] for row in read_sweeps(options.results)}
        sweeps = [sweep for sweep in SWEEPS if sweep in recorded]
        if not sweeps:
            raise UsageError(f"no rows in {options.results}/*.jsonl yet; run a sweep first")
        runs = [run for sweep in sweeps for run in expand(sweep, options.protocol, seeds=[0])]
        records = read_records(options.results)
        record = measure(runs)
        others = [other for other in records if other["protocol"] != options.protocol]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [*others, record])
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for sweep, rates in record["images_per_second"].items():
        print(sweep, ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))
    print(f"images/s, {record['device']}, batch {record['batch']}; {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

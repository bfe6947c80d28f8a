"""Rows of results in `SWEEP.jsonl`, one for each finished run, written from any number of hosts."""

import json
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from absl import logging

from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, Run
from repvgg_jax.config.fields import run_fields
from repvgg_jax.data.sources.folder_layout import TEST_FOLDERS, TRAIN_FOLDERS
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.files import read_json
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics

RESULTS = Path("experiments/results")
VERSION = 1
_REQUIRED = ("config_hash", "sweep", "name", "seed", "protocol", "top1")
_START = b'{"version"'  # the start of every row
REPORT_FILE = "report.json"  # written last by a run
INFO_FILE = "run.json"  # known only to the training process: commit, cores, startup


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a file, the last one for each `row_key`; none if the file is missing.

    Incomplete lines left by killed processes are skipped.

    Raises:
      UsageError: for a row of another version or a line that is not a row, with file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            if line[: len(_START)] == _START[: len(line)]:  # an incomplete row
                continue
            raise UsageError(f"{where}: not a JSON row; fix or delete that line") from None
        version = row.get("version") if isinstance(row, dict) else None
        if version != VERSION:
            raise UsageError(
                f"{where}: version {version!r}, but this code reads version {VERSION}; move the "
                "file away, or use the code that wrote it"
            )
        if missing := [name for name in _REQUIRED if name not in row]:
            raise UsageError(f"{where}: missing {', '.join(missing)}; fix or delete that line")
        key = row_key(row)
        rows.pop(key, None)  # the later row also determines the position
        rows[key] = row
    return list(rows.values())


def read_sweeps(results: Path) -> list[dict[str, Any]]:
    """Returns the rows of all files in a folder; a run shared by sweeps has a row in each."""
    return [row for path in sorted(results.glob("*.jsonl")) for row in read_rows(path)]


def is_finished(run: Run, workdir: Path) -> bool:
    """Returns True if the workdir contains this run's report, undamaged."""
    path = workdir / REPORT_FILE
    try:
        return path.exists() and read_report(workdir).get("config_hash") == run.config_hash
    except UsageError as error:
        logging.warning("%s", error)
        return False


def read_report(workdir: Path) -> dict[str, Any]:
    """Returns the content of a run's `report.json`."""
    return read_json(workdir / REPORT_FILE, "the run writes it again when it is resumed")


def make_row(run: Run, workdir: Path) -> dict[str, Any]:
    """Returns the row of a finished run, read from its workdir."""
    report = read_report(workdir)
    info = read_info(workdir)
    metrics = read_metrics(workdir / METRICS_FILE)
    rates = [row["examples_per_second"] for row in metrics if row.get("examples_per_second")]
    # The median, since a mean would include pauses, such as a laptop's sleep.
    rate = statistics.median(rates) if rates else report["examples_per_second"]
    step_seconds = run.config().train.batch_size / rate if rate else None
    finished = time.gmtime((workdir / REPORT_FILE).stat().st_mtime)
    return {
        "version": VERSION,
        **sweep_fields(run),
        "seed": run.seed,
        "commit": info.get("commit"),
        "earlier_commits": info.get("earlier_commits", []),
        "dirty": info.get("dirty"),
        "environment": _without_folders(report.get("environment")),  # of the last start
        "earlier_environments": [
            _without_folders(earlier) for earlier in report.get("earlier_environments", [])
        ],
        "device": device_name(report["device"], info.get("cores")),
        "top1": report["top1"],
        "fusion_error": report.get("fusion", {}).get("max_relative_error"),
        "steps": report["steps"],
        "step_seconds": step_seconds,
        "examples_per_second": rate,
        "startup_seconds": info.get("startup_seconds"),
        "evaluation_seconds": _evaluation_seconds(metrics, step_seconds or 0.0),
        "eval_images": report["eval_count"],
        "wall_seconds": max([report["wall_seconds"], *(row["seconds"] for row in metrics)]),
        "temporaries_bytes": report.get("temporaries_bytes"),
        "params": report["params"],
        "macs": report["macs"],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", finished),
        "curves": {
            kind: {
                name: [row.get(name) for row in metrics if row["kind"] == kind]
                for name in ("step", "loss", "top1")
            }
            for kind in ("train", "eval")
        },
    }


def _without_folders(environment: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns an environment without the folders above the data, since rows are published."""
    if environment is None:
        return None
    data = {
        split: about | {"name": _without_folder(about["name"])}
        for split, about in environment.get("data", {}).items()
    }
    return {**environment, "data": data}


def _without_folder(name: str) -> str:
    """Returns the name of a source without the folders above the data.

    Example:
      >>> _without_folder("cifar10 train in /data/cifar10/3.0.2")
      'cifar10 train'
      >>> _without_folder("/home/me/dogs in snow/train")
      'dogs in snow/train'
    """
    if prepared := re.match(r"(\w\S* \w+) in ", name):
        return prepared[1]
    path = Path(name)
    is_split = path.name.lower() in (*TRAIN_FOLDERS, *TEST_FOLDERS)
    return "/".join(path.parts[-2:] if is_split else path.parts[-1:])


def _evaluation_seconds(metrics: Sequence[Mapping[str, Any]], step_seconds: float) -> float | None:
    """Returns the median time of the evaluations after the first, which includes compilation."""
    found = [
        row["seconds"] - before["seconds"] - step_seconds * (row["step"] - before["step"])
        for before, row in pairwise(metrics)
        if row["kind"] == "eval"
    ]
    return max(0.0, statistics.median(found[1:])) if len(found) > 1 else None


def sweep_fields(run: Run) -> dict[str, Any]:
    """Returns the fields of a row that depend on sweep and protocol, not on the training.

    `overrides` has the values as stored in the config, without those equal to the protocol's.
    """
    fields = run_fields(run.config())
    usual = run_fields(PROTOCOLS[run.protocol]())
    own = SWEEPS[run.sweep].variants[run.name]
    overrides = {
        name: fields.get(name)
        for name in run.overrides
        if name in own or fields.get(name) != usual.get(name)
    }
    return {
        "sweep": run.sweep,
        "name": run.name,
        "protocol": run.protocol,
        "config_hash": run.config_hash,
        "overrides": overrides,
    }


def row_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the fields that distinguish the rows of one run in several sweeps and protocols."""
    return tuple(row[name] for name in ("config_hash", "sweep", "name", "protocol"))


def device_name(device: str, cores: int | None) -> str:
    """Returns the device's name, for CPUs with the number of cores, on which times depend."""
    if cores is None or not device.startswith("cpu"):
        return device
    return f"{device}, {cores} core{'' if cores == 1 else 's'}"


def read_info(workdir: Path) -> dict[str, Any]:
    """Returns the content of `run.json`, empty if it is missing."""
    path = workdir / INFO_FILE
    remedy = "delete it, and the row lacks the commits of earlier processes"
    return read_json(path, remedy) if path.exists() else {}

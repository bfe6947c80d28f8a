"""`experiments/results/SWEEP.jsonl`: one row a finished run, written from any number of hosts."""

from __future__ import annotations

import fcntl
import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.sweeps.ablations import SWEEPS
from experiments.sweeps.expand import PROTOCOLS, Run
from repvgg_jax.config.fields import identity
from repvgg_jax.errors import RunError, UsageError
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics

RESULTS = Path("experiments/results")
VERSION = 1
# What no reader can do without.
_NEEDED = ("config_hash", "sweep", "name", "seed", "protocol", "top1")
_START = b'{"version"'  # of every row
REPORT_FILE = "report.json"  # of a finished run
ABOUT_FILE = "run.json"  # what only the process that trains can say: commit, cores, temporaries


def append_row(path: str | os.PathLike[str], row: dict[str, Any]) -> None:
    """Appends one line, whole, whoever else is appending.

    One write to a descriptor in append mode, under a lock of the file; POSIX locks hold over NFS,
    where appending by itself is not atomic. What a writer that died left of a line is closed.

    Raises:
      RunError: where the file cannot be written to.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(f"{path} cannot be written to ({error.strerror})") from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)  # gone with the process, however that ends
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if (written := os.write(descriptor, line)) < len(line):
            raise RunError(f"{path}: {written} of {len(line)} bytes written; is the disk full?")
        os.fsync(descriptor)
    except OSError as error:
        raise RunError(f"{path} cannot be written to ({error.strerror})") from None
    finally:
        os.close(descriptor)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file, the last of each place of a config hash; none where there is no file.

    Lines that a writer's death tore are left out: they end where another row's line starts.

    Raises:
      UsageError: for a row of another version, and a line that is no row, by file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if line[: len(_START)] == _START[: len(line)]:  # of a row of ours, and not its end
                continue
            raise UsageError(f"{path}, line {number}: no row; mend or remove that line") from None
        if not isinstance(row, dict) or row.get("version") != VERSION:
            version = row.get("version") if isinstance(row, dict) else None
            raise UsageError(
                f"{path}, line {number}: version {version!r}, where this code reads {VERSION}; "
                "move the file away, or read it with the code that wrote it"
            )
        if missing := [name for name in _NEEDED if name not in row]:
            words = ", ".join(missing)
            raise UsageError(f"{path}, line {number}: no {words}; mend or remove that line")
        key = place_key(row)
        rows.pop(key, None)  # so that a later one takes its later place
        rows[key] = row
    return list(rows.values())


def read_sweeps(results: Path) -> list[dict[str, Any]]:
    """The rows of all sweeps' files in a folder; runs that sweeps share have a row in each.

    Raises:
      UsageError: as `read_rows`.
    """
    return [row for path in sorted(results.glob("*.jsonl")) for row in read_rows(path)]


def finished(run: Run, workdir: Path) -> bool:
    """Whether the workdir holds this run's report, the last thing that a run writes."""
    path = workdir / REPORT_FILE
    return path.exists() and json.loads(path.read_text()).get("config_hash") == run.config_hash


def row_of(run: Run, workdir: Path) -> dict[str, Any]:
    """The row of a finished run, from what lies in its workdir."""
    config = run.config()
    report = json.loads((workdir / REPORT_FILE).read_text())
    about = read_about(workdir)
    metrics = read_metrics(workdir / METRICS_FILE)
    rate = _median_rate(metrics) or report["examples_per_second"]
    done = time.gmtime((workdir / REPORT_FILE).stat().st_mtime)
    return {
        "version": VERSION,
        **place(run),
        "seed": run.seed,
        "commit": about.get("commit"),
        "earlier_commits": about.get("earlier_commits", []),  # which it began with
        "dirty": about.get("dirty"),
        "device": device_words(report["device"], about.get("cores")),
        "top1": report["top1"],
        "fusion_error": report.get("fusion", {}).get("max_relative_error"),
        "steps": report["steps"],
        "step_seconds": config.train.batch_size / rate if rate else None,
        "examples_per_second": rate,
        "wall_seconds": max([report["wall_seconds"], *(row["seconds"] for row in metrics)]),
        "temporaries_bytes": about.get("temporaries_bytes"),
        "params": report["params"],
        "macs": report["macs"],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", done),
        "curves": _curves(metrics),
    }


def place(run: Run) -> dict[str, Any]:
    """What of a row is the sweep's and protocol's; the rest is the run's, whoever trained it."""
    deciding, usual = identity(run.config()), identity(PROTOCOLS[run.protocol]())
    own = SWEEPS[run.sweep].variants[run.name]
    # By the config's values, not as they were typed: what is the protocol's anyway changes nothing.
    overrides = {
        name: deciding.get(name)
        for name in run.overrides
        if name in own or deciding.get(name) != usual.get(name)
    }
    where = {"sweep": run.sweep, "name": run.name, "protocol": run.protocol}
    return {**where, "config_hash": run.config_hash, "overrides": overrides}


def place_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of the places a row has that one run may have rows in."""
    return tuple(row[name] for name in ("config_hash", "sweep", "name", "protocol"))


def cpu_cores() -> int | None:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def device_words(device: str, cores: int | None) -> str:
    """With a CPU's cores, without which its times say nothing."""
    if cores is None or not device.startswith("cpu"):
        return device
    return f"{device}, {cores} core{'s' * (cores > 1)}"


def read_about(workdir: Path) -> dict[str, Any]:
    """What `run.json` says; nothing where it isn't there."""
    path = workdir / ABOUT_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _median_rate(rows: list[dict[str, Any]]) -> float | None:
    """The median, as the mean of a report counts the hours that a laptop slept through."""
    rates = [row["examples_per_second"] for row in rows if row.get("examples_per_second")]
    return statistics.median(rates) if rates else None


def _curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    return {
        kind: {
            name: [row.get(name) for row in rows if row["kind"] == kind]
            for name in ("step", "loss", "top1")
        }
        for kind in ("train", "eval")
    }

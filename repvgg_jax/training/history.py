"""The history of a run, `history.jsonl`: a row for each start of the run, and one for its end.

A run that is resumed has several starts. The row of a start is written when the checkpoint to
resume from, if any, has been read. A process that is killed writes no row for its end; the row of
the next start counts its time up to its last row in `metrics.jsonl`. A start from step 0 begins a
new run: the rows before it belong to a run whose checkpoints are gone.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from repvgg_jax.config.workdir import changed_fields
from repvgg_jax.errors import RunError
from repvgg_jax.runtime.files import append_row, parse_json, replace_text
from repvgg_jax.runtime.processes import warn_once
from repvgg_jax.training.environment import differences
from repvgg_jax.training.metrics import METRICS_FILE, read_metrics

HISTORY_FILE = "history.jsonl"


def record_start(
    workdir: Path,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    step: int,
    seconds: float,
) -> None:
    """Appends a row for a start from the given step; warns if the environment has changed.

    `changed` of the row holds the fields of `config` whose values differ from `config.json`, which
    keeps the values of the first start; `packages` lists the installed packages other than this
    one in pip's format. Call it in process 0 only.

    Args:
      workdir: folder of the run.
      config: the config of this start.
      environment: the environment of this start.
      step: the step of the checkpoint that it resumes from, or 0.
      seconds: duration of the run before this start, from `recorded_seconds`.

    Raises:
      RunError: if the row cannot be written.
    """
    earlier = read_history(workdir)
    changed = {name: value for name, (_, value) in changed_fields(config, workdir).items()}
    row = {
        "time": _now(),
        "step": step,
        "seconds": round(seconds, 3),
        "changed": changed,
        "environment": environment,
        "packages": _packages(),
    }
    append_row(workdir / HISTORY_FILE, row)
    if step and earlier and (found := differences(earlier[-1]["environment"], environment)):
        warn_once(
            "resuming in another environment: %s; results may differ, and report.json lists both",
            "; ".join(found),
        )


def record_end(workdir: Path, step: int, seconds: float) -> None:
    """Writes the row for the end of a start, if it can be written.

    The row of a finished command replaces the one that the same start wrote after its training.

    Args:
      workdir: folder of the run.
      step: the last step computed.
      seconds: duration of the run so far, over all starts.
    """
    path = workdir / HISTORY_FILE
    with suppress(OSError, ValueError):  # which would hide why the run ends
        *before, last = path.read_bytes().splitlines(keepends=True)
        if "ended" in parse_json(last):
            replace_text(path, b"".join(before).decode())
    with suppress(RunError):
        append_row(path, {"ended": _now(), "step": step, "seconds": round(seconds, 3)})


def recorded_seconds(workdir: Path) -> float:
    """Returns the duration of a run up to its last record, in the history or in `metrics.jsonl`.

    Call it before the metrics of steps that are computed again are removed.

    Raises:
      UsageError: if `metrics.jsonl` is damaged before its last line.
    """
    metrics = workdir / METRICS_FILE
    rows = [*_rows(workdir), *(read_metrics(metrics) if metrics.exists() else [])]
    return max((row.get("seconds", 0.0) for row in rows), default=0.0)


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """Returns a row for each start, without lines left incomplete by a killed process."""
    return [row for row in _rows(workdir) if {"step", "changed", "environment"} <= row.keys()]


def recorded_options(workdir: Path) -> dict[str, str]:
    """Returns the compiler options of the last recorded start; none if there is no record."""
    starts = read_history(workdir)
    return starts[-1]["environment"].get("compiler_options", {}) if starts else {}


def _packages() -> list[str]:
    # A package without a name is what an interrupted installation leaves. pip cannot install this
    # package by its version; the environment has its commit.
    others = (p for p in distributions() if p.name not in (None, "repvgg_jax", "repvgg-jax"))
    return sorted({f"{package.name}=={package.version}" for package in others}, key=str.lower)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _rows(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / HISTORY_FILE
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            row = parse_json(line)
            begins = row.get("step") == 0 and "ended" not in row
            rows = [row] if begins else [*rows, row]
    return rows


def environments(workdir: Path) -> list[dict[str, Any]]:
    """Returns the environments that computed a run's steps, with the first step as `from_step`.

    The last one is that of the latest start, even if no step was left for it.
    """
    found: list[dict[str, Any]] = []
    for row in read_history(workdir):
        # The steps that earlier starts computed from here on were lost, and are computed again.
        found = [earlier for earlier in found if earlier["from_step"] < row["step"]]
        if not found or found[-1] != row["environment"] | {"from_step": found[-1]["from_step"]}:
            found.append(row["environment"] | {"from_step": row["step"]})
    return found

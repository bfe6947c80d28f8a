"""The history of a run, `history.jsonl`: one row for each start, with what was changed since."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repvgg_jax.config.fields import flat
from repvgg_jax.config.workdir import read_config
from repvgg_jax.runtime.files import append_row, parse_json
from repvgg_jax.runtime.processes import warn_once
from repvgg_jax.training.environment import differences

HISTORY_FILE = "history.jsonl"


def record_start(
    workdir: Path, config: Mapping[str, Any], environment: Mapping[str, Any], step: int
) -> None:
    """Appends a row for a start from the given step; warns if the environment has changed.

    `changed` of the row holds the fields of `config` whose values differ from `config.json`, which
    keeps the values of the first start. Call it in process 0 only.

    Raises:
      RunError: if the row cannot be written.
    """
    earlier = read_history(workdir)
    first = dict(flat(read_config(workdir).to_dict()))
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "step": step,
        "changed": {
            name: value
            for name, value in flat(config)
            if json.dumps(first.get(name)) != json.dumps(value)
        },
        "environment": environment,
    }
    append_row(workdir / HISTORY_FILE, row)
    if step and earlier and (found := differences(earlier[-1]["environment"], environment)):
        warn_once(
            "resuming in another environment: %s; results may differ, and report.json lists both",
            "; ".join(found),
        )


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's history, without lines left incomplete by a killed process."""
    path = workdir / HISTORY_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if {"step", "changed", "environment"} <= row.keys():
            rows.append(row)
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

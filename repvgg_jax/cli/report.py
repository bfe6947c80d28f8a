"""Writes and reads `report.json`, the results of a run."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from repvgg_jax.checkpoint.fused import has_fused
from repvgg_jax.checkpoint.manager import steps
from repvgg_jax.config.fields import config_hash
from repvgg_jax.errors import RunError, UsageError, one_line, reraise
from repvgg_jax.runtime.files import read_json, write_json
from repvgg_jax.runtime.processes import warn_once

_FILE = "report.json"


def read_report(workdir: Path) -> dict[str, Any]:
    """Returns the report of a workdir; empty without one, or with a warning if it is damaged."""
    path = workdir / _FILE
    if not path.exists():
        return {}
    try:
        return read_json(path, "it is written again, without the speed of earlier steps")
    except UsageError as error:
        warn_once("%s", error)
        return {}


def is_finished(report: dict[str, Any], config: ConfigDict, workdir: Path) -> bool:
    """Returns True if a report is of this config, and the weights that it describes exist."""
    return (
        report.get("config_hash") == config_hash(config)
        and report.get("steps") in steps(workdir)[-1:]
        and ("fusion" not in report or has_fused(workdir))
    )


def write_report(workdir: Path, report: dict[str, Any]) -> None:
    """Writes `report.json`.

    Raises:
      RunError: if it cannot be written.
    """
    path = workdir / _FILE

    def failed(error: Exception) -> RunError:
        return RunError(
            f"{path} cannot be written ({one_line(error)}); rerun the same command to write it"
        )

    with reraise(OSError, failed):
        write_json(path, report)

"""What runs jobs: `LAUNCHERS[name](jobs, options)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Job:
    """One run: a unique name, its argv, and how long it should take."""

    name: str
    command: tuple[str, ...]
    seconds: float | None


@dataclass(frozen=True)
class LauncherOptions:
    """What a launcher may be told."""

    processes: int | None = None  # local: at a time; one a device unless given


def _launch(name: str, jobs: Sequence[Job], options: LauncherOptions) -> None:
    importlib.import_module(f"experiments.launchers.{name}").launch(jobs, options)


LAUNCHERS: dict[str, Callable[[Sequence[Job], LauncherOptions], None]] = {
    name: partial(_launch, name) for name in ("local", "slurm", "kubernetes")
}

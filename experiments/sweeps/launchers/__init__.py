"""What runs jobs: `launcher(name).check(jobs, options)`, then `.launch(jobs, options)`.

A launcher is a module, imported when it is used, and what it needs with it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from experiments.sweeps.jobs import Job
from repvgg_jax.errors import UsageError


@dataclass(frozen=True)
class LauncherOptions:
    """What launchers may be told; each field is a flag of `experiments.run`, with that help."""

    processes: Annotated[
        int | None,
        "local, slurm: runs at a time; by default one a device, or as many as SLURM lets",
    ] = None
    folder: Annotated[
        Path, "slurm: of logs, on a disk that all nodes see; kubernetes: of manifests"
    ] = Path("runs/jobs")
    grace: Annotated[
        int, "slurm, kubernetes: seconds to save in, between being told to stop and being killed"
    ] = 120
    restarts: Annotated[int, "slurm: after time limits; kubernetes: after failures"] = 20
    cluster: Annotated[str, "slurm: or local, for the same jobs on this machine"] = "slurm"
    partition: Annotated[str | None, "slurm: the partition, by default the cluster's own"] = None
    account: Annotated[str | None, "slurm: who is charged, by default the user's own"] = None
    minutes: Annotated[int, "slurm: time limit; what takes longer is queued again, and goes on"] = (
        240
    )
    cpus: Annotated[int, "slurm: of a run"] = 8
    gpus: Annotated[int, "slurm: of a run, all on one node; 0 for none"] = 1
    slice: Annotated[
        str | None, "kubernetes, needed: chips along each axis, as --mode=compile has them: v5e:4x4"
    ] = None
    image: Annotated[
        str | None, "kubernetes, needed: an image with this project as its working directory"
    ] = None
    queue: Annotated[str | None, "kubernetes, needed: Kueue's local queue"] = None
    namespace: Annotated[str, "kubernetes: of the queue, and of what is queued"] = "default"
    volume: Annotated[
        str | None, "kubernetes, needed: gs://BUCKET[/FOLDER], or the name of a claim"
    ] = None
    mount: Annotated[
        Path, "kubernetes: where a pod sees the volume; workdirs and results lie there"
    ] = Path("/runs")
    service_account: Annotated[str | None, "kubernetes: that may use the bucket"] = None

    def __post_init__(self) -> None:
        """Raises UsageError, listing all, for numbers that make no sense."""
        least = dict(processes=1, grace=0, restarts=0, minutes=1, cpus=1, gpus=0)
        given = {name: getattr(self, name) for name in least}
        if wrong := [n for n, v in given.items() if v is not None and v < least[n]]:
            words = (f"--{name}={given[name]}: must be {least[name]} or more" for name in wrong)
            raise UsageError("; ".join(words))


def check_folders(*folders: Path) -> None:
    """Raises UsageError for what is no folder that this process can write to, or make."""
    for folder in folders:
        there = next(
            path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path)
        )
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UsageError(f"{folder} cannot be written to: {there} is no folder that one can")


class Launcher(Protocol):
    """What a launcher's module has: beside its functions, the fields of the options it reads."""

    FLAGS: set[str]

    def check(self, jobs: Sequence[Job], options: LauncherOptions) -> None:
        """Raises UsageError, before anything starts, for what `launch` would refuse."""

    def launch(self, jobs: Sequence[Job], options: LauncherOptions) -> None:
        """Runs the jobs, or hands them to what will."""


LAUNCHERS = ("local", "slurm", "kubernetes")


def launcher(name: str) -> Launcher:
    """The module of one of `LAUNCHERS`."""
    return importlib.import_module(f"experiments.sweeps.launchers.{name}")

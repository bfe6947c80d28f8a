"""What runs jobs: `launcher(name).check(jobs, options)`, then `.launch(jobs, options)`.

A launcher is a module, imported when it is used, and what it needs with it.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from repvgg_jax.errors import UsageError

# The exit code of a command that was told to stop, and goes on when started again: of sysexits.h, a
# temporary failure, the user is invited to retry.
STOPPED = 75
HELD = 73  # of a command whose run is another process's: it cannot create what it should write
# How a command ends that was told to stop, also before it could tell: by the signal itself, or with
# what a shell makes of a SIGINT.
STOPPED_CODES = (STOPPED, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
LONGEST_NAME = 48  # of a job: Kubernetes' names of pods add 15 characters, and have 63 at most


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      name: unique, of small letters, digits and hyphens; `LONGEST_NAME` characters suit everywhere.
      command: the argv that runs it, or goes on with it; `python` is the launcher's own. It exits
        with 0 when done, with `STOPPED` when told to stop by SIGTERM, with `HELD` where
        another process has the run.
    """

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class LauncherOptions:
    """What launchers may be told; each field is a flag of `experiments.run`.

    Attributes:
      processes: runs at a time. local: one a device; slurm: as many as the scheduler lets.
      folder: slurm: of logs, on a file system that all nodes see; kubernetes: of manifests.
      grace: slurm, kubernetes: seconds to save in, between being told to stop and being killed.
      restarts: slurm: after time limits; kubernetes: after failures.
      cluster: slurm, or local for the same jobs on this machine.
      partition, account: slurm's.
      minutes: slurm: time limit; what takes longer is queued again, and goes on.
      cpus, gpus: slurm: of a run, all on one node; 0 GPUs for none.
      slice: kubernetes: TPU chips along each axis, as --mode=compile has them: v5e:4x4.
      image: kubernetes: of the container, with this project as its working directory.
      queue, namespace: kubernetes: Kueue's local queue, and where that is.
      volume: kubernetes: gs://BUCKET[/FOLDER], or the name of a claim.
      mount: kubernetes: where a pod sees the volume; workdirs and results lie there.
      service_account: kubernetes: that may use the bucket.
    """

    processes: int | None = None
    folder: Path = Path("runs/jobs")
    grace: int = 120
    restarts: int = 20
    cluster: str = "slurm"
    partition: str | None = None
    account: str | None = None
    minutes: int = 240
    cpus: int = 8
    gpus: int = 1
    slice: str | None = None
    image: str | None = None
    queue: str | None = None
    namespace: str = "default"
    volume: str | None = None
    mount: Path = Path("/runs")
    service_account: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError, listing all, for numbers that make no sense."""
        least = dict(processes=1, grace=0, restarts=0, minutes=1, cpus=1, gpus=0)
        given = {name: getattr(self, name) for name in least}
        if wrong := [n for n, v in given.items() if v is not None and v < least[n]]:
            words = (f"--{name}={given[name]}: must be {least[name]} or more" for name in wrong)
            raise UsageError("; ".join(words))


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
    return importlib.import_module(f"experiments.launchers.{name}")

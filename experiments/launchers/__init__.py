"""What runs jobs: `LAUNCHERS[name](jobs, options)`.

A launcher's own module is imported when it is used, and what it needs with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# The exit code of a command that was told to stop, and goes on when started again: of sysexits.h, a
# temporary failure, the user is invited to retry.
STOPPED = 75
LONGEST_NAME = 48  # of a job: Kubernetes' names of pods add 15 characters, and have 63 at most


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      name: unique, of small letters, digits and hyphens; `LONGEST_NAME` characters suit everywhere.
      command: the argv that runs it, or goes on with it; `python` is the launcher's own. It exits
        with 0 when done, with `STOPPED` when told to stop by SIGTERM.
      seconds: expected, where that is known.
    """

    name: str
    command: tuple[str, ...]
    seconds: float | None


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
      mount: kubernetes: where a pod sees the volume; workdirs lie there.
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


def _launch(name: str, jobs: Sequence[Job], options: LauncherOptions) -> None:
    importlib.import_module(f"experiments.launchers.{name}").launch(jobs, options)


LAUNCHERS: dict[str, Callable[[Sequence[Job], LauncherOptions], None]] = {
    name: partial(_launch, name) for name in ("local", "slurm", "kubernetes")
}
